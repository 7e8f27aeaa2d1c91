// The models that the service has, of which one may be chosen.

import { computed, effect, signal, untracked } from "@preact/signals";
import { request } from "../api/client";
import type { Model } from "../api/types";
import { options } from "./options";
import { recording } from "./recording";

/** Null until they are known. */
export const models = signal<Model[] | null>(null);
/** The model to ask for: the one that was chosen, unless the service has it no longer; null: the server's default. */
export const chosenModel = computed(() => {
  const { model } = options.value;
  return models.value?.every((one) => one.default || modelId(one) !== model) ? null : model;
});

export function modelId({ name, version }: Model): string {
  return `${name}@${version}`;
}

async function load(): Promise<void> {
  // Without them there is no choice to offer, and the service says what it lacks.
  const answer = await request<{ data: Model[] }>("/v1/models").catch(() => null);
  if (answer) models.value = answer.data;
}

// Not before a recording is open: by then, a service that asks for a key has accepted one.
effect(() => {
  if (recording.value && untracked(() => models.value === null)) void load();
});
