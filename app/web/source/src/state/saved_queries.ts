// Saved queries: sounds that can be asked for again.

import { signal } from "@preact/signals";
import { request } from "../api/client";
import { follow } from "../api/follow";
import type { SavedQuery } from "../api/types";
import { references } from "../request/build";
import { report } from "./notice";
import type { Target } from "./targets";

export const savedQueries = signal<SavedQuery[]>([]);

export async function loadSavedQueries(): Promise<void> {
  try {
    const { data } = await request<{ data: SavedQuery[] }>("/v1/queries?limit=100");
    savedQueries.value = data.filter(({ status }) => status === "succeeded");
  } catch (error) {
    report(error);
  }
}

/** Saves a target's examples under its name. */
export async function saveQuery({ name, query }: Target): Promise<void> {
  if (query.kind !== "examples") return;
  try {
    const json = { name, examples: references(query.examples) };
    const job = await request<SavedQuery>("/v1/queries", { json });
    const finished = await follow(job, () => undefined, new AbortController().signal);
    if (finished.error) throw new Error(finished.error.detail);
    await loadSavedQueries();
  } catch (error) {
    report(error);
  }
}

export async function deleteSavedQuery(id: string): Promise<void> {
  try {
    await request<null>(`/v1/queries/${id}`, { method: "DELETE" });
    await loadSavedQueries();
  } catch (error) {
    report(error);
  }
}
