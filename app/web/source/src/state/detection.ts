// What is heard in the recording: detection that starts by itself.

import { computed, effect, signal, untracked } from "@preact/signals";
import { request } from "../api/client";
import { follow, isFinished } from "../api/follow";
import type { Detection, DetectionRequest, Label } from "../api/types";
import { lanes, type Lane } from "../timeline/lanes";
import { chosenModel } from "./models";
import { explain } from "./notice";
import { options } from "./options";
import { recording, reference, type Recording } from "./recording";

type State =
  | { kind: "off" }
  | { kind: "listening"; ratio: number; position: number }
  | { kind: "heard"; lanes: Lane[]; warnings: string[] }
  | { kind: "failed"; text: string; code: string | null };

const ITEM = "earmark-detections"; // ids of this tab's detections by upload, track and model

export const detection = signal<State>({ kind: "off" });
export const heardLanes = computed(() => (detection.value.kind === "heard" ? detection.value.lanes : []));

let current = new AbortController();
let paths: Promise<ReadonlyMap<string, string[]>> | null = null;

/** Starts to listen to the open recording, or shows what was heard in it before. */
export async function listen(): Promise<void> {
  const opened = recording.value;
  if (!opened) return;
  stopListening();
  const { signal } = (current = new AbortController());
  detection.value = { kind: "listening", ratio: 0, position: 0 };
  const asked = wanted(opened);
  let job: Detection | null = null;
  try {
    job = await start(asked, signal);
    signal.throwIfAborted();
    job = await follow(job, showProgress, signal);
    if (job.status !== "succeeded") throw new Error(job.error?.detail ?? "Detection was stopped.");
    const found = lanes(job.events, await loadPaths());
    if (!signal.aborted) detection.value = { kind: "heard", lanes: found, warnings: job.warnings };
  } catch (error) {
    if (!signal.aborted) detection.value = { kind: "failed", ...explain(error) };
    else if (job && !isFinished(job)) cancel(asked, job);
  }
}

/** Forgets what was heard, and cancels a detection that has not finished. */
export function stopListening(): void {
  current.abort();
  detection.value = { kind: "off" };
}

function showProgress(job: Detection): void {
  detection.value = { kind: "listening", ratio: job.progress.ratio, position: job.queue.position };
}

function wanted(opened: Recording): DetectionRequest {
  const model = chosenModel.value;
  return { ...reference(opened), ...(model === null ? {} : { model }) };
}

async function start(json: DetectionRequest, signal: AbortSignal): Promise<Detection> {
  const id = remembered()[keyOf(json)];
  if (id) {
    const earlier = await request<Detection>(`/v1/detections/${id}`, { signal }).catch(() => null);
    if (earlier && earlier.status !== "failed" && earlier.status !== "canceled") return earlier;
  }
  // Without `signal`: a job whose id did not arrive could not be canceled.
  const job = await request<Detection>("/v1/detections", { json });
  sessionStorage.setItem(ITEM, JSON.stringify({ ...remembered(), [keyOf(json)]: job.id }));
  return job;
}

/** Cancels a detection that nobody waits for any more, such as of a recording that was replaced. */
function cancel(asked: DetectionRequest, job: Detection): void {
  const known = remembered();
  if (known[keyOf(asked)] === job.id) delete known[keyOf(asked)];
  sessionStorage.setItem(ITEM, JSON.stringify(known));
  request(`/v1/detections/${job.id}/cancel`, { method: "POST" }).catch(() => {}); // it may have finished, or be gone
}

function keyOf({ audio_id, track, model }: DetectionRequest): string {
  return [audio_id, track, model].filter((part) => part !== undefined).join("/");
}

function remembered(): Record<string, string> {
  return JSON.parse(sessionStorage.getItem(ITEM) ?? "{}") as Record<string, string>;
}

function loadPaths(): Promise<ReadonlyMap<string, string[]>> {
  paths ??= request<{ data: Label[] }>("/v1/labels?limit=1000").then(
    ({ data }) => new Map(data.map(({ label, path }) => [label, path])),
  );
  paths.catch(() => (paths = null));
  return paths;
}

// Anew for another recording, track or model.
effect(() => {
  const opened = recording.value;
  const request = opened && wanted(opened);
  untracked(() => {
    stopListening();
    if (request && (options.value.listens || remembered()[keyOf(request)])) void listen();
  });
});
