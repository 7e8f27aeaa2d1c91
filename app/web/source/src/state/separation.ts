// The separation that the studio shows: its creation, its progress, and its stems as tracks.

import { batch, computed, signal } from "@preact/signals";
import { ApiError, isAbort, request, withParameters } from "../api/client";
import { follow, isFinished } from "../api/follow";
import type { Audio, RequestTarget, Separation, SeparationRequest, Stem } from "../api/types";
import type { Track } from "../playback/audible";
import { load } from "../playback/transport";
import { buildRequest, readNegative, readQuery } from "../request/build";
import { peakTiles, type PeakTiles } from "../timeline/peaks";
import { pictureTiles, type PictureTiles } from "../timeline/spectrogram";
import { clock } from "../timeline/ticks";
import { view, whole } from "../timeline/view";
import { findEntry, forget, remember, updateEntry, type Entry } from "./history";
import { chosenModel } from "./models";
import { notice, report } from "./notice";
import { options } from "./options";
import {
  close,
  mixtureTrack,
  onReplace,
  recording,
  reference,
  show,
  SPECTROGRAM_HEIGHT,
  type Origin,
} from "./recording";
import { addTarget, areReady, auto, change, clear, targets, type Target } from "./targets";

/** A stem in the studio. */
export interface ShownStem {
  stem: Stem;
  track: string;
  colour: string;
  peaks: PeakTiles;
  pictures: PictureTiles | null;
}

export const separation = signal<Separation | null>(null);
/** The request that made it, or null for one that another browser made. */
export const sentRequest = signal<SeparationRequest | null>(null);
export const stems = signal<ShownStem[]>([]);
export const sending = signal(false);
export const isRunning = computed(() => sending.value || (separation.value !== null && !isFinished(separation.value)));
/** Why a separation cannot start yet; null when it can. */
export const blocked = computed(() => {
  if (!recording.value) return "Choose a recording first.";
  if (!auto.value && !targets.value.length) return "Say what you want: drag over the sound, or describe it.";
  if (!areReady.value) return "The examples are being uploaded.";
  return null;
});
/** The request that a press of the button would send. */
export const draft = computed(() => {
  if (!recording.value) return null;
  const most = auto.value ? options.value.maxTargets : null;
  const choices = { ...options.value, model: chosenModel.value };
  return buildRequest(reference(recording.value), targets.value, most, choices);
});

const GONE = "This separation is gone, or belongs to another key.";

let current = new AbortController();

/** Separates the targets from the recording. */
export async function run(): Promise<void> {
  const body = draft.value;
  const opened = recording.value;
  if (blocked.value || isRunning.value || !body || !opened) return;
  forgetStems();
  for (const { id } of targets.value) change(id, { error: null });
  notice.value = null;
  sending.value = true;
  try {
    const job = await request<Separation>("/v1/separations", { json: body });
    begin(job, body, opened.origin);
  } catch (error) {
    if (!assignErrors(error, targets.value)) report(error, () => void run());
  } finally {
    sending.value = false;
  }
}

export async function cancel(): Promise<void> {
  if (!separation.value) return;
  try {
    const canceled = await request<Separation>(`/v1/separations/${separation.value.id}/cancel`, { method: "POST" });
    if (canceled.id === separation.value?.id && !isFinished(separation.value)) separation.value = canceled;
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "already_over")) report(error);
  }
}

/** A new job like the one that failed or was canceled. */
export async function retry(): Promise<void> {
  const failed = separation.value;
  if (!failed || isRunning.value) return;
  sending.value = true;
  notice.value = null;
  try {
    const job = await request<Separation>(`/v1/separations/${failed.id}/retry`, { method: "POST" });
    const entry = findEntry(failed.id);
    begin(job, entry?.request ?? sentRequest.value, entry?.origin ?? { kind: "file", name: "recording" });
  } catch (error) {
    report(error);
  } finally {
    sending.value = false;
  }
}

/** Shows the separation with this id, with its recording while that lasts. */
export async function openSeparation(id: string): Promise<void> {
  close();
  forgetSeparation();
  const { signal } = (current = new AbortController());
  try {
    const job = await request<Separation>(`/v1/separations/${id}`, { signal });
    const entry = findEntry(id);
    const origin = entry?.origin ?? { kind: "file", name: "recording" };
    const audio = await request<Audio>(`/v1/audio/${job.mixture.audio_id}`, { signal }).catch(() => null);
    if (signal.aborted) return;
    restoreTargets(entry, job);
    if (audio) {
      const named = audio.filename && !entry ? { name: audio.filename } : {};
      await show(audio, { ...origin, ...named } as Origin, job.mixture.track ?? null);
    } else view.value = whole(job.mixture.duration ?? 1);
    separation.value = job;
    sentRequest.value = entry?.request ?? null;
    await watch(job);
  } catch (error) {
    if (isAbort(error)) return;
    const isGone = error instanceof ApiError && error.status === 404;
    report(isGone ? new ApiError(404, error.code, GONE) : error, () => void openSeparation(id));
  }
}

/** Deletes a separation and its stems; one that is shown is closed first, with what is being fetched of it. */
export async function deleteSeparation(id: string): Promise<void> {
  if (separation.value?.id === id) reset();
  try {
    await request<null>(`/v1/separations/${id}`, { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) return report(error);
  }
  forget(id);
}

/** Forgets the separation and its address, but not the recording. */
export function reset(): void {
  forgetSeparation();
  if (location.hash) window.history.replaceState(null, "", "/");
}

function forgetSeparation(): void {
  current.abort();
  batch(() => {
    forgetStems();
    separation.value = null;
    sentRequest.value = null;
  });
}

function forgetStems(): void {
  for (const { peaks, pictures } of stems.value) {
    peaks.close();
    pictures?.close();
  }
  const opened = recording.value;
  if (stems.value.length && opened) {
    const { duration, audio } = opened;
    load([mixtureTrack(audio)], { duration, rate: audio.sample_rate, channels: audio.channels });
  }
  stems.value = [];
}

function begin(job: Separation, body: SeparationRequest | null, origin: Origin): void {
  separation.value = job;
  sentRequest.value = body;
  window.history.replaceState(null, "", `#${job.id}`); // a reload finds it again
  if (body) {
    const names = body.targets?.map(titleOf) ?? ["everything heard"];
    remember({
      id: job.id,
      status: job.status,
      createdAt: job.created_at,
      expiresAt: job.expires_at,
      origin,
      names,
      request: body,
      files: targets.value.flatMap(exampleFiles),
    });
  }
  void watch(job);
}

/** A target in the history: its name, and where it was pointed at. */
function titleOf({ name, label, text, spans }: RequestTarget): string {
  const title = name ?? label ?? text ?? "";
  return spans ? `${title} (${spans.map(({ start, end }) => `${clock(start)}–${clock(end)}`).join(", ")})` : title;
}

async function watch(job: Separation): Promise<void> {
  current.abort();
  const { signal } = (current = new AbortController());
  try {
    const finished = await follow(job, (changed) => (separation.value = changed), signal);
    separation.value = finished;
    updateEntry(job.id, { status: finished.status, expiresAt: finished.expires_at });
    if (finished.status === "succeeded") showStems(finished);
  } catch (error) {
    report(error, () => void openSeparation(job.id));
  }
}

function showStems(job: Separation): void {
  const opened = recording.value;
  const colours = new Map(targets.value.map(({ name, colour }) => [name, colour]));
  const shown = job.stems.map((stem, index): ShownStem => {
    const url = `/v1/separations/${job.id}/stems/${encodeURIComponent(stem.name)}`;
    return {
      stem,
      track: `stem:${stem.name}`,
      colour: stem.name === "residual" ? "var(--rest)" : (colours.get(stem.name) ?? `var(--sound-${index % 8})`),
      peaks: peakTiles(stem.peaks_url ?? `${url}/peaks`, stem.peaks_url !== undefined),
      pictures: stem.spectrogram_url ? pictureTiles(stem.spectrogram_url, SPECTROGRAM_HEIGHT) : null,
    };
  });
  const stemTracks = shown.map(({ stem, track, colour }, index): Track => ({
    id: track,
    name: stem.name,
    url: withParameters(stem.url, { redirect: 0 }),
    colour,
    solo: index === 0 && stem.name !== "residual", // the first press of play lets the wanted sound be heard
    mute: false,
    gain: 1,
  }));
  const mixture = opened ? [{ ...mixtureTrack(opened.audio), mute: true }] : [];
  stems.value = shown;
  const duration = opened?.duration ?? job.mixture.duration ?? 1;
  load([...mixture, ...stemTracks], { duration, rate: job.mixture.sample_rate, channels: job.mixture.channels });
}

/** Shows errors of fields at the targets that they are about; false if there are others. */
function assignErrors(error: unknown, asked: Target[]): boolean {
  if (!(error instanceof ApiError) || !error.errors.length) return false;
  const found = error.errors.map(({ pointer, detail }) => {
    const index = /^\/targets\/(\d+)/.exec(pointer)?.[1];
    return { target: index === undefined ? undefined : asked[Number(index)], detail };
  });
  if (found.some(({ target }) => !target)) return false;
  for (const { target, detail } of found) {
    if (target) change(target.id, { error: { text: detail, code: error.code } });
  }
  return true;
}

function restoreTargets(entry: Entry | undefined, job: Separation): void {
  clear();
  auto.value = entry?.request.auto !== undefined;
  const files = new Map(entry?.files);
  for (const target of entry?.request.targets ?? []) {
    const added = addTarget(readQuery(target, files), target.name ?? "Sound");
    change(added.id, { not: readNegative(target, files) });
  }
  if (entry) return;
  for (const { name, label } of job.targets) {
    if (label) addTarget({ kind: "label", label }, name); // what the others were is known to whoever asked
  }
}

function exampleFiles({ query, not }: Target): [string, string][] {
  const examples = [
    ...(query.kind === "examples" ? query.examples : []),
    ...(not?.kind === "examples" ? not.examples : []),
  ];
  return examples.flatMap(({ name, audioId }): [string, string][] => (audioId === null ? [] : [[audioId, name]]));
}

onReplace(reset);
