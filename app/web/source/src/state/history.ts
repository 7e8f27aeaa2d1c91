// This browser's separations, the newest first.

import { effect, signal } from "@preact/signals";
import type { SeparationRequest, Status } from "../api/types";
import type { Origin } from "./recording";

export interface Entry {
  id: string;
  status: Status;
  createdAt: string;
  expiresAt: string | null;
  origin: Origin;
  names: string[]; // of its targets
  request: SeparationRequest;
  files: [string, string][]; // ids and names of its examples
}

const ITEM = "earmark-history"; // in localStorage
const KEPT = 50;

function read(): Entry[] {
  try {
    return JSON.parse(localStorage.getItem(ITEM) ?? "[]") as Entry[];
  } catch {
    return [];
  }
}

export const history = signal<Entry[]>(read());

/** Adds a separation, or changes its entry. */
export function remember(entry: Entry): void {
  history.value = [entry, ...history.value.filter(({ id }) => id !== entry.id)].slice(0, KEPT);
}

export function updateEntry(id: string, change: Partial<Entry>): void {
  history.value = history.value.map((entry) => (entry.id === id ? { ...entry, ...change } : entry));
}

export function forget(id: string): void {
  history.value = history.value.filter((entry) => entry.id !== id);
}

export function findEntry(id: string): Entry | undefined {
  return history.value.find((entry) => entry.id === id);
}

effect(() => localStorage.setItem(ITEM, JSON.stringify(history.value)));
// Another tab has changed it.
window.addEventListener("storage", ({ key }) => {
  if (key === ITEM) history.value = read();
});
