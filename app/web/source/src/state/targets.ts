// What the user wants: targets, each with its own colour.

import { computed, signal } from "@preact/signals";
import { request, upload } from "../api/client";
import type { Audio, AudioTrack, Label, LabelSearch, Span } from "../api/types";
import { explain } from "./notice";
import { onReplace, readableTracks } from "./recording";

export interface Example {
  name: string;
  audioId: string | null; // null while it is uploaded
  tracks?: AudioTrack[]; // audio tracks that can be read, where the page has uploaded it
  track?: number; // the one that is meant, unless it is the first
}

export type Query =
  | { kind: "spans"; spans: Span[] }
  | { kind: "examples"; examples: Example[] }
  | { kind: "label"; label: string }
  | { kind: "text"; text: string }
  | { kind: "saved"; id: string; name: string };

export type Negative = { kind: "label"; label: string } | { kind: "examples"; examples: Example[] };

export interface Target {
  id: number;
  colour: string;
  name: string;
  query: Query;
  not: Negative | null;
  error: { text: string; code: string | null } | null;
}

const COLOURS = 8; // --sound-0 to --sound-7 in page.css

export const targets = signal<Target[]>([]);
/** The target that was removed last, with its place, until it is taken back or another one is added. */
export const removed = signal<{ target: Target; index: number } | null>(null);
/** Whether everything that is heard is separated, in place of `targets`. */
export const auto = signal(false);
export const areReady = computed(() => targets.value.every((target) => pending(target) === 0));

// Spans are of one recording; the other targets may be asked of the next one, too.
onReplace(() => {
  targets.value = targets.value.filter(({ query }) => query.kind !== "spans");
  removed.value = null;
});

let created = 0;

export function addTarget(query: Query, name: string): Target {
  const used = new Set(targets.value.map((target) => target.colour));
  // The longest unused comes first: stems that are still shown keep the colours of targets that are gone.
  const all = Array.from({ length: COLOURS }, (_, index) => `var(--sound-${(created + index) % COLOURS})`);
  const colour = all.find((one) => !used.has(one)) ?? all[0] ?? "var(--sound-0)";
  const target = { id: ++created, colour, name: freeName(name), query, not: null, error: null };
  targets.value = [...targets.value, target];
  removed.value = null;
  auto.value = false;
  return target;
}

export function addSpan(span: Span, name?: string): void {
  addTarget({ kind: "spans", spans: [span] }, name ?? "Sound");
}

export function addLabel(label: string): void {
  const asked = targets.value.some(({ query }) => query.kind === "label" && query.label === label);
  if (!asked) addTarget({ kind: "label", label }, label);
}

/** Adds what was typed: a class that was chosen or written out, or words of one's own. */
export function addWords(text: string, labels: Label[]): void {
  const words = text.trim();
  if (!words) return;
  const label = labels.find((one) => one.label.toLowerCase() === words.toLowerCase() && one.askable);
  if (label) addLabel(label.label);
  else addTarget({ kind: "text", text: words }, words);
}

/** Adds a target like these files, and uploads them. */
export async function addExamples(files: { blob: Blob; name: string }[]): Promise<void> {
  const [first] = files;
  if (!first) return;
  const examples = files.map(({ name }) => ({ name, audioId: null }));
  const target = addTarget({ kind: "examples", examples }, stemOf(first.name));
  await uploadExamples(target.id, files, (all) => change(target.id, { query: { kind: "examples", examples: all } }));
}

/** Says what a target is not, by examples. */
export async function addNegativeExamples(id: number, files: { blob: Blob; name: string }[]): Promise<void> {
  const examples = files.map(({ name }) => ({ name, audioId: null }));
  change(id, { not: { kind: "examples", examples } });
  await uploadExamples(id, files, (all) => change(id, { not: { kind: "examples", examples: all } }));
}

export function change(id: number, fields: Partial<Omit<Target, "id">>): void {
  const changed = (target: Target): Target => (target.id === id ? { ...target, ...fields } : target);
  targets.value = targets.value.map(changed);
  // Its uploads go on, for it may be taken back.
  if (removed.value) removed.value = { ...removed.value, target: changed(removed.value.target) };
}

export function addSpanTo(target: Target, span: Span): void {
  if (target.query.kind === "spans")
    change(target.id, { query: { kind: "spans", spans: [...target.query.spans, span] } });
}

export function rename(id: number, name: string): void {
  const trimmed = name.replace(/[/\\]/g, "-").trim().slice(0, 64);
  if (trimmed) change(id, { name: freeName(trimmed, id), error: null });
}

export function remove(id: number): void {
  const index = targets.value.findIndex((target) => target.id === id);
  const target = targets.value[index];
  if (!target) return;
  removed.value = { target, index };
  targets.value = targets.value.toSpliced(index, 1);
}

/** Forgets all of them. */
export function clear(): void {
  targets.value = [];
  removed.value = null;
  auto.value = false;
}

/** Takes back the last removal. */
export function restore(): void {
  if (!removed.value) return;
  const { target, index } = removed.value;
  removed.value = null;
  targets.value = targets.value.toSpliced(index, 0, { ...target, name: freeName(target.name) });
}

/** Number of a target's files that are still being uploaded. */
export function pending({ query, not }: Target): number {
  const files = [
    ...(query.kind === "examples" ? query.examples : []),
    ...(not?.kind === "examples" ? not.examples : []),
  ];
  return files.filter((example) => example.audioId === null).length;
}

/** A name that no other target has, whatever the case of letters; `residual` belongs to the rest. */
function freeName(wanted: string, except = 0): string {
  const taken = new Set(targets.value.filter(({ id }) => id !== except).map(({ name }) => name.toLowerCase()));
  taken.add("residual");
  const base = wanted.slice(0, 60);
  let name = base;
  for (let number = 2; taken.has(name.toLowerCase()); number++) name = `${base} ${number}`;
  return name;
}

function stemOf(filename: string): string {
  return (
    filename
      .replace(/\.[^.]+$/, "")
      .replace(/[/\\]/g, "-")
      .slice(0, 60) || "Example"
  );
}

async function uploadExamples(
  id: number,
  files: { blob: Blob; name: string }[],
  keep: (examples: Example[]) => void,
): Promise<void> {
  const controller = new AbortController();
  try {
    const uploads = files.map(({ blob, name }) => upload<Audio>(blob, name, () => undefined, controller.signal));
    const stored = await Promise.all(uploads);
    keep(stored.map((audio, at) => ({ name: files[at]?.name ?? audio.id, audioId: audio.id, tracks: readableTracks(audio) })));
  } catch (error) {
    controller.abort();
    change(id, { error: explain(error) });
  }
}

/** Classes that match what was typed. */
export function searchLabels(text: string, signal: AbortSignal): Promise<LabelSearch> {
  return request<LabelSearch>(`/v1/labels?q=${encodeURIComponent(text)}&limit=8`, { signal });
}
