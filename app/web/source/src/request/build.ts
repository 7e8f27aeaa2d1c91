// The body of `POST /v1/separations`, from what the page holds, and back.

import type { AudioReference, Output, RequestTarget, SeparationRequest } from "../api/types";
import type { Example, Negative, Query, Target } from "../state/targets";
import { DEFAULTS } from "./output";

/** What a request says besides the sounds. */
export interface Choices {
  output: Output;
  model: string | null; // null: the server's default
  webhook: string; // address to notify; empty: none
}

/** The request for these targets, or for everything that is heard (`auto`: how many at most); only what is not default. */
export function buildRequest(
  mixture: AudioReference,
  targets: Target[],
  auto: number | null,
  { output, model, webhook }: Choices,
): SeparationRequest {
  const changed = Object.entries(output).filter(([name, value]) => DEFAULTS[name as keyof Output] !== value);
  return {
    mixture,
    ...(auto === null ? { targets: targets.map(requestTarget) } : { auto: { max_targets: auto } }),
    ...(changed.length ? { output: Object.fromEntries(changed) as Partial<Output> } : {}),
    ...(model === null ? {} : { model }),
    ...(webhook.trim() ? { webhook: { url: webhook.trim() } } : {}),
  };
}

function requestTarget({ name, query, not }: Target): RequestTarget {
  return { name, ...queryFields(query), ...negativeFields(not) };
}

function queryFields(query: Query): Partial<RequestTarget> {
  switch (query.kind) {
    case "spans":
      return { spans: query.spans.map(({ start, end }) => ({ start: round(start), end: round(end) })) };
    case "examples":
      return { examples: references(query.examples) };
    case "label":
      return { label: query.label };
    case "text":
      return { text: query.text };
    case "saved":
      return { query_id: query.id };
  }
}

function negativeFields(not: Negative | null): Partial<RequestTarget> {
  if (!not) return {};
  return not.kind === "label" ? { not_label: not.label } : { not_examples: references(not.examples) };
}

/** The examples that are uploaded, as requests name them. */
export function references(examples: Example[]): AudioReference[] {
  return examples.flatMap(({ audioId, track }) =>
    audioId === null ? [] : [{ audio_id: audioId, ...(track === undefined ? {} : { track }) }],
  );
}

function round(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}

/** A request's targets as the page holds them; `files`: names of uploads by their ids. */
export function readQuery(target: RequestTarget, files: ReadonlyMap<string, string>): Query {
  if (target.spans) return { kind: "spans", spans: target.spans };
  if (target.examples) return { kind: "examples", examples: readExamples(target.examples, files) };
  if (target.label !== undefined) return { kind: "label", label: target.label };
  if (target.query_id !== undefined) return { kind: "saved", id: target.query_id, name: target.name ?? "" };
  return { kind: "text", text: target.text ?? target.name ?? "" };
}

/** The same for what a target is not. */
export function readNegative(target: RequestTarget, files: ReadonlyMap<string, string>): Negative | null {
  if (target.not_label !== undefined) return { kind: "label", label: target.not_label };
  if (target.not_examples) return { kind: "examples", examples: readExamples(target.not_examples, files) };
  return null;
}

function readExamples(references: AudioReference[], files: ReadonlyMap<string, string>): Example[] {
  return references.map(({ audio_id, track }) => ({
    name: files.get(audio_id) ?? audio_id,
    audioId: audio_id,
    ...(track === undefined ? {} : { track }),
  }));
}
