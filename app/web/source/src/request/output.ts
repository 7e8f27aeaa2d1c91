// Formats of stems, and what the service does when a request does not say.

import type { Format, Output } from "../api/types";

export const DEFAULTS: Output = {
  format: "flac",
  residual: true,
  joint: false,
  gate: true,
  quality: "standard",
};

/** Names of formats, and the bit depths that they can be asked for; the first is the default. */
export const FORMATS: Record<Format, { name: string; bitDepths?: number[] }> = {
  flac: { name: "FLAC, lossless", bitDepths: [24, 16] },
  wav: { name: "WAV", bitDepths: [32, 24, 16] },
  mp3: { name: "MP3" },
  ogg: { name: "Ogg Vorbis" },
  opus: { name: "Opus" },
  m4a: { name: "M4A (AAC)" },
};
