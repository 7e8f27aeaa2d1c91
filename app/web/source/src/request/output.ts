// Formats of stems.

import type { Output } from "../api/types";

/** What the service does when a request does not say. */
export const DEFAULTS: Output = {
  format: "flac",
  residual: true,
  joint: false,
  gate: true,
  quality: "standard",
};

/** Bit depths that a format can be asked for; the first is the default. */
export const BIT_DEPTHS: Partial<Record<Output["format"], number[]>> = { flac: [24, 16], wav: [32, 24, 16] };
