// Options of a separation, kept in this browser.

import { effect, signal } from "@preact/signals";
import type { Output } from "../api/types";

export const DEFAULTS: Output = { format: "flac", residual: true, joint: false, gate: true };
/** Bit depths that a format can be asked for; the first is the default. */
export const BIT_DEPTHS: Partial<Record<Output["format"], number[]>> = { flac: [24, 16], wav: [32, 24, 16] };

const ITEM = "earmark-options";

interface Options {
  output: Output;
  maxTargets: number; // of `auto`
  listens: boolean; // whether detection starts by itself
}

function read(): Options {
  const initial: Options = { output: DEFAULTS, maxTargets: 8, listens: true };
  try {
    return { ...initial, ...(JSON.parse(localStorage.getItem(ITEM) ?? "{}") as Partial<Options>) };
  } catch {
    return initial;
  }
}

export const options = signal<Options>(read());

export function setOptions(change: Partial<Options>): void {
  options.value = { ...options.value, ...change };
}

export function setOutput(change: Partial<Output>): void {
  setOptions({ output: { ...options.value.output, ...change } });
}

effect(() => localStorage.setItem(ITEM, JSON.stringify(options.value)));
