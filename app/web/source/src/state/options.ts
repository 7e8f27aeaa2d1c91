// Options of a separation, kept in this browser.

import { effect, signal } from "@preact/signals";
import type { Output } from "../api/types";
import type { Choices } from "../request/build";
import { DEFAULTS } from "../request/output";

const ITEM = "earmark-options";

interface Options extends Choices {
  maxTargets: number; // of `auto`
  listens: boolean; // whether detection starts by itself
}

function read(): Options {
  const initial: Options = { output: DEFAULTS, model: null, webhook: "", maxTargets: 8, listens: true };
  try {
    const stored = JSON.parse(localStorage.getItem(ITEM) ?? "{}") as Partial<Options>;
    return { ...initial, ...stored, output: { ...DEFAULTS, ...stored.output } }; // an older page stored fewer fields
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
