// The bundled recordings that the start offers.

import { signal } from "@preact/signals";
import { recording, openFile } from "./recording";
import { report } from "./notice";
import { addLabel, addSpan, targets } from "./targets";

export interface BundledExample {
  file: string;
  title: string;
  licence: string;
  source?: string;
  suggestion?: { label?: string; span?: { start: number; end: number }; name?: string };
}

export const bundledExamples = signal<BundledExample[]>([]);

export async function loadBundledExamples(): Promise<void> {
  const response = await fetch("/page/examples.json").catch(() => null);
  if (!response?.ok) return;
  bundledExamples.value = ((await response.json()) as { examples: BundledExample[] }).examples;
}

/** Opens one as if it had been dropped, with a first target. */
export async function openBundledExample({ file, suggestion }: BundledExample): Promise<void> {
  const response = await fetch(`/page/examples/${file}`).catch(() => null);
  if (!response?.ok) return report(new Error("The example cannot be loaded."));
  targets.value = [];
  await openFile(await response.blob(), file);
  if (!recording.value) return;
  if (suggestion?.label) addLabel(suggestion.label);
  if (suggestion?.span) addSpan(suggestion.span, suggestion.name);
}
