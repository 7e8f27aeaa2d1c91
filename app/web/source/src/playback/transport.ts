// The studio's one clock: what plays, where, in which loop; and the tracks with their solo, mute and gain.

import { batch, computed, effect, signal, untracked } from "@preact/signals";
import type { Span } from "../api/types";
import { reveal, view } from "../timeline/view";
import { audibleGains, MIXTURE, type Track } from "./audible";
import { BufferedPlayer } from "./buffered";
import type { Player } from "./player";
import { StreamedPlayer } from "./streamed";

const BUFFERED_SECONDS = 300; // longer recordings are streamed
const SHORTEST_LOOP = 0.02; // seconds
const BUFFERED_TRACK_SECONDS = 3600; // of all channels of all tracks together: 0.7 GB of samples at 48 kHz

export const tracks = signal<Track[]>([]);
export const playing = signal(false);
export const position = signal(0);
/** The stretch that is selected in the recording. */
export const selection = signal<Span | null>(null);
export const looping = signal(false);
/** Whether the selection is being dragged: until it is let go, what plays goes on. */
export const selecting = signal(false);
/** Whether the mixture alone is heard, while its key or button is held. */
export const mixtureHeld = signal(false);
export const loadingTracks = signal(false);
/** Why nothing can be played; null while it can. */
export const playbackFailure = signal<string | null>(null);

export const anySolo = computed(() => tracks.value.some((track) => track.solo));

let player: Player | null = null;

/** Shows and plays other tracks from now on, at the same position. */
export function load(next: Track[], recording: { duration: number; rate: number; channels: number }): void {
  const reached = untracked(() => position.value);
  unload();
  const sources = next.map(({ id, url }) => ({ id, url }));
  const samples = recording.duration * recording.channels * next.length;
  const isShort = recording.duration <= BUFFERED_SECONDS && samples <= BUFFERED_TRACK_SECONDS;
  const created: Player =
    isShort && next.length > 1
      ? new BufferedPlayer(sources, recording.duration, recording.rate, stopped)
      : new StreamedPlayer(sources, recording.duration, stopped);
  player = created;
  batch(() => {
    tracks.value = next;
    loadingTracks.value = true;
    playbackFailure.value = null;
    position.value = Math.min(reached, recording.duration);
  });
  created.seek(untracked(() => position.value));
  created.setLoop(untracked(() => (looping.value ? selection.value : null)));
  created.ready
    .catch(() => {
      if (player === created)
        playbackFailure.value = "This browser cannot play these files. Downloads work all the same.";
    })
    .finally(() => {
      if (player === created) loadingTracks.value = false;
    });
}

/** Forgets the tracks. */
export function unload(): void {
  player?.close();
  player = null;
  batch(() => {
    tracks.value = [];
    playing.value = false;
    loadingTracks.value = false;
  });
}

export async function togglePlay(): Promise<void> {
  if (!player || playbackFailure.value) return;
  if (playing.value) {
    player.pause();
    playing.value = false;
    return;
  }
  const started = player;
  playing.value = true;
  try {
    await started.play();
    if (!playing.value) started.pause(); // pressed again while the tracks were loading
    requestAnimationFrame(tick);
  } catch {
    if (player === started) playing.value = false;
  }
}

export function seek(time: number): void {
  const limited = Math.min(Math.max(time, 0), view.value.duration);
  player?.seek(limited);
  position.value = limited;
  view.value = reveal(view.value, limited);
}

/** Changes one track's settings. */
export function setTrack(id: string, change: Partial<Pick<Track, "solo" | "mute" | "gain">>): void {
  tracks.value = tracks.value.map((track) => (track.id === id ? { ...track, ...change } : track));
}

/** Hears one track alone; a repeat hears all again. */
export function toggleSolo(id: string): void {
  const only = tracks.value.find((track) => track.id === id);
  const wasAlone = only?.solo && tracks.value.filter((track) => track.solo).length === 1;
  tracks.value = tracks.value.map((track) => ({ ...track, solo: track.id === id && !wasAlone }));
}

/** The tracks of a finished separation, in order: the stems. */
export function stemTracks(): Track[] {
  return tracks.value.filter((track) => track.id !== MIXTURE);
}

function stopped(): void {
  batch(() => {
    playing.value = false;
    position.value = player?.position() ?? 0;
  });
}

function tick(): void {
  if (!player || !playing.value) return;
  if (player.playing) {
    position.value = player.position();
    view.value = reveal(view.value, position.value);
  }
  requestAnimationFrame(tick);
}

effect(() => {
  const gains = audibleGains(tracks.value, mixtureHeld.value);
  player?.setGains(gains);
});

effect(() => {
  if (selecting.value) return;
  const span = looping.value ? selection.value : null;
  const loop = span && span.end - span.start > SHORTEST_LOOP ? span : null;
  untracked(() => {
    const reached = position.value;
    if (loop && playing.value && (reached < loop.start || reached >= loop.end)) seek(loop.start);
    player?.setLoop(loop);
  });
});
