// The bundled recordings that the start offers.

import { signal } from "@preact/signals";
import type { RequestTarget } from "../api/types";
import { readNegative, readQuery } from "../request/build";
import { report } from "./notice";
import { onReplace, openFile, recording } from "./recording";
import { addTarget, change, clear } from "./targets";

export interface BundledExample {
  file: string;
  url: string;
  title: string;
  licence: string;
  attribution: string;
  seconds: number;
  suggestions: Suggestion[];
}

/** A sound that can be got out of an example. */
export interface Suggestion {
  title: string;
  target: RequestTarget;
}

export const bundledExamples = signal<BundledExample[]>([]);
/** What else can be asked of the example that is open. */
export const suggestions = signal<Suggestion[]>([]);

onReplace(() => (suggestions.value = []));

export async function loadBundledExamples(): Promise<void> {
  const response = await fetch("/page/examples.json").catch(() => null);
  if (response?.ok) bundledExamples.value = ((await response.json()) as { data: BundledExample[] }).data;
}

/** Opens one as if it had been dropped, with its first suggestion as the target. */
export async function openBundledExample(example: BundledExample): Promise<void> {
  const response = await fetch(example.url).catch(() => null);
  if (!response?.ok) return report(new Error("The example cannot be loaded."));
  clear();
  await openFile(await response.blob(), example.file);
  const [first, ...others] = example.suggestions;
  if (!recording.value || !first) return;
  accept(first);
  suggestions.value = others;
}

/** `birds` from `the birds, by pointing at them`. */
function shortName(title: string): string {
  return title.replace(/^the /, "").replace(/,.*$/, "");
}

/** Makes a suggestion a target. */
export function accept({ title, target }: Suggestion): void {
  const { id } = addTarget(readQuery(target, new Map()), target.name ?? shortName(title));
  change(id, { not: readNegative(target, new Map()) });
  suggestions.value = suggestions.value.filter((one) => one.title !== title);
}
