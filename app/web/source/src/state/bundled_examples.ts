// The bundled recordings that the start offers.

import { signal } from "@preact/signals";
import type { RequestTarget } from "../api/types";
import { readNegative, readQuery } from "../request/build";
import { report } from "./notice";
import { openFile, recording } from "./recording";
import { addTarget, change, targets } from "./targets";

export interface BundledExample {
  file: string;
  url: string;
  title: string;
  licence: string;
  attribution: string;
  seconds: number;
  suggestions: { target: RequestTarget }[];
}

export const bundledExamples = signal<BundledExample[]>([]);

export async function loadBundledExamples(): Promise<void> {
  const response = await fetch("/page/examples.json").catch(() => null);
  if (response?.ok) bundledExamples.value = ((await response.json()) as { data: BundledExample[] }).data;
}

/** Opens one as if it had been dropped, with its first suggestion as the target. */
export async function openBundledExample({ file, url, suggestions }: BundledExample): Promise<void> {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) return report(new Error("The example cannot be loaded."));
  targets.value = [];
  await openFile(await response.blob(), file);
  const target = suggestions[0]?.target;
  if (!recording.value || !target) return;
  const { id } = addTarget(readQuery(target, new Map()), target.name ?? target.label ?? target.text ?? "Sound");
  change(id, { not: readNegative(target, new Map()) });
}
