// The recording that is open in the studio, from the file, microphone or address to its record and tracks.

import { batch, computed, signal } from "@preact/signals";
import { ApiError, isAbort, request, upload, withParameters } from "../api/client";
import type { Audio, AudioReference, AudioTrack, Peaks } from "../api/types";
import { MIXTURE, type Track } from "../playback/audible";
import { load, looping, playbackFailure, position, selection, unload } from "../playback/transport";
import { peakTiles, type PeakTiles } from "../timeline/peaks";
import { pictureTiles, type PictureTiles } from "../timeline/spectrogram";
import { view, whole } from "../timeline/view";
import { notice, report } from "./notice";

/** Where a recording came from: what the request drawer shows. */
export type Origin = { kind: "file"; name: string } | { kind: "url"; url: string };

export interface Recording {
  audio: Audio;
  origin: Origin;
  duration: number;
  track: number | null; // that is drawn and separated; null: the first that can be read
}

export const SPECTROGRAM_HEIGHT = 256; // pixels of a tile

export const recording = signal<Recording | null>(null);
/** The upload that is under way; `ratio`: null while its size is not known. */
export const uploading = signal<{ name: string; ratio: number | null } | null>(null);
export const peaks = signal<PeakTiles | null>(null);
export const pictures = signal<PictureTiles | null>(null);
export const isOpen = computed(() => recording.value !== null || uploading.value !== null);

let current = new AbortController();
const listeners: (() => void)[] = [];

/** Calls `listener` whenever another recording is about to be uploaded in place of the open one. */
export function onReplace(listener: () => void): void {
  listeners.push(listener);
}

/** Uploads a file as the recording. */
export function openFile(file: Blob, name: string): Promise<void> {
  return open(
    name,
    { kind: "file", name },
    () => openFile(file, name),
    (signal) => upload<Audio>(file, name, (ratio) => (uploading.value = { name, ratio }), signal),
  );
}

/** Lets the service fetch the recording. */
export function openUrl(url: string): Promise<void> {
  return open(
    url,
    { kind: "url", url },
    () => openUrl(url),
    (signal) => request<Audio>("/v1/audio", { json: { url }, signal }),
  );
}

/** Back to the start, with nothing open. */
export function close(): void {
  current.abort();
  peaks.value?.close();
  pictures.value?.close();
  unload();
  batch(() => {
    recording.value = null;
    uploading.value = null;
    peaks.value = null;
    pictures.value = null;
    selection.value = null;
    looping.value = false;
    position.value = 0;
    playbackFailure.value = null;
    notice.value = null;
  });
}

/** Shows a recording that the service has, or one track of it. */
export async function show(audio: Audio, origin: Origin, track: number | null = null): Promise<Recording> {
  const duration = audio.duration ?? (await request<Peaks>(`/v1/audio/${audio.id}/peaks?points=1`)).duration;
  const opened = { audio, origin, duration, track };
  batch(() => {
    uploading.value = null;
    draw(opened);
    view.value = whole(duration);
  });
  load([mixtureTrack(audio)], { duration, rate: audio.sample_rate, channels: audio.channels });
  return opened;
}

/** Draws another audio track of the open recording, which is what is separated from now on. */
export function chooseTrack(track: number | null): void {
  const opened = recording.value;
  if (!opened) return;
  peaks.value?.close();
  pictures.value?.close();
  batch(() => draw({ ...opened, track }));
}

function draw(opened: Recording): void {
  const { audio, track } = opened;
  const chosen = track === null ? {} : { track };
  const peaksUrl = withParameters(audio.peaks_url ?? `/v1/audio/${audio.id}/peaks`, chosen);
  recording.value = opened;
  peaks.value = peakTiles(peaksUrl, audio.peaks_url !== undefined);
  pictures.value = audio.spectrogram_url
    ? pictureTiles(withParameters(audio.spectrogram_url, chosen), SPECTROGRAM_HEIGHT)
    : null;
}

/** The tracks of an upload that can be read. */
export function readableTracks({ tracks }: Audio): AudioTrack[] {
  return tracks?.filter(({ readable }) => readable) ?? [];
}

/** Rate and channels of what is drawn. */
export function soundOf({ audio, track }: Recording): { sample_rate: number; channels: number } {
  return audio.tracks?.find((one) => one.track === track) ?? audio;
}

/** A recording as requests name it. */
export function reference({ audio, track }: Recording): AudioReference {
  return { audio_id: audio.id, ...(track === null ? {} : { track }) };
}

/** The recording itself as a track. */
export function mixtureTrack(audio: Audio): Track {
  const url = withParameters(audio.url, { redirect: 0 });
  return { id: MIXTURE, name: "Recording", url, colour: "var(--ink)", solo: false, mute: false, gain: 1 };
}

async function open(
  name: string,
  origin: Origin,
  again: () => Promise<void>,
  send: (signal: AbortSignal) => Promise<Audio>,
): Promise<void> {
  close();
  for (const listener of listeners) listener();
  const sending = (current = new AbortController()); // only what was chosen last is used
  uploading.value = { name, ratio: null };
  try {
    const audio = await send(sending.signal);
    if (sending.signal.aborted) return;
    await show(audio, origin);
  } catch (error) {
    if (isAbort(error) || sending.signal.aborted) return;
    uploading.value = null;
    const canRepeat = !(error instanceof ApiError) || error.status === 0 || error.status === 401 || error.status >= 429;
    report(error, canRepeat ? () => void again() : null);
  }
}
