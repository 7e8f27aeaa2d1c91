// What is heard, as lanes: one a class, the more specific class only where it says the same as the one above it.

import type { HeardEvent } from "../api/types";

export interface Lane {
  label: string;
  events: HeardEvent[];
  confidence: number; // the highest of its events
}

const SAME = 0.8; // the part of an event that events of more specific classes must cover to replace it

/** The lanes of a detection, the surest first. `paths`: each class with the names above it, itself last. */
export function lanes(events: HeardEvent[], paths: ReadonlyMap<string, string[]>): Lane[] {
  const byLabel = new Map<string, HeardEvent[]>();
  for (const event of events) byLabel.set(event.label, [...(byLabel.get(event.label) ?? []), event]);
  const found: Lane[] = [];
  for (const [label, own] of byLabel) {
    const below = [...byLabel].filter(([other]) => other !== label && paths.get(other)?.includes(label));
    const specific = below.flatMap(([, theirs]) => theirs);
    const kept = own.filter((event) => covered(event, specific) < SAME * (event.end - event.start));
    if (!kept.length) continue;
    found.push({ label, events: kept, confidence: Math.max(...kept.map((event) => event.confidence)) });
  }
  return found.sort((a, b) => b.confidence - a.confidence);
}

/** Seconds of an event during which at least one of the others sounds. */
function covered(event: HeardEvent, others: HeardEvent[]): number {
  let seconds = 0;
  let reached = event.start;
  for (const other of others.toSorted((a, b) => a.start - b.start)) {
    const start = Math.max(reached, other.start);
    const end = Math.min(event.end, other.end);
    if (end <= start) continue;
    seconds += end - start;
    reached = end;
  }
  return seconds;
}
