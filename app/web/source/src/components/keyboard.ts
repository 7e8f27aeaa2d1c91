// Keys of the studio; none of them while a field or a dialog has the focus.

import {
  looping,
  mixtureHeld,
  position,
  seek,
  selection,
  setTrack,
  stemTracks,
  toggleSolo,
  togglePlay,
} from "../playback/transport";
import { recording } from "../state/recording";
import { stems } from "../state/separation";
import { removed, restore } from "../state/targets";
import { view, whole } from "../timeline/view";
import { useSelection, zoomBy } from "./Transport";

/** Keys and what they do, for the help that the page shows. */
export const KEYS: [string, string][] = [
  ["Space", "play or pause"],
  ["← →", "a second back or on; with Shift five"],
  ["[ ]", "begin or end the selection here"],
  ["Enter", "the selection is what I want"],
  ["L", "loop"],
  ["Esc", "clear the selection"],
  ["+ − 0", "zoom in, out, show all"],
  ["1 … 9", "hear a stem alone"],
  ["M", "mute the stem that is heard alone"],
  ["B", "hold to hear the recording"],
  ["Ctrl Z", "take back the removal of a sound"],
];

export function listenToKeys(): void {
  window.addEventListener("keydown", (event) => {
    if (!isForStudio(event)) return;
    const action = isUndo(event) ? restore : actions(event);
    if (!action) return;
    event.preventDefault();
    action();
  });
  window.addEventListener("keyup", ({ key }) => {
    if (key.toLowerCase() === "b") mixtureHeld.value = false;
  });
  window.addEventListener("blur", () => (mixtureHeld.value = false));
}

function isForStudio(event: KeyboardEvent): boolean {
  const hasStudio = recording.value !== null || stems.value.length > 0;
  const isPlain = (!event.ctrlKey && !event.metaKey && !event.altKey) || isUndo(event);
  if (!hasStudio || !isPlain || document.querySelector("dialog[open]")) return false;
  const focused = event.target as HTMLElement;
  if (focused.matches("input:not([type=checkbox]), textarea, select, [role=combobox]")) return false;
  const pressesControl = event.key === " " || event.key === "Enter";
  return !(pressesControl && focused.matches("button, a, summary, input"));
}

/** Ctrl or Cmd with Z while there is something to take back; otherwise it is left to the browser. */
function isUndo({ ctrlKey, metaKey, altKey, shiftKey, key }: KeyboardEvent): boolean {
  return removed.value !== null && (ctrlKey || metaKey) && !altKey && !shiftKey && key.toLowerCase() === "z";
}

function actions({ key, shiftKey, repeat }: KeyboardEvent): (() => void) | null {
  const step = shiftKey ? 5 : 1;
  switch (key) {
    case " ":
      return () => void togglePlay();
    case "ArrowLeft":
      return () => seek(position.value - step);
    case "ArrowRight":
      return () => seek(position.value + step);
    case "Home":
      return () => seek(0);
    case "End":
      return () => seek(view.value.duration);
    case "[":
      return () => select(position.value, Math.max(selection.value?.end ?? 0, position.value + 0.1));
    case "]":
      return () => select(Math.min(selection.value?.start ?? 0, position.value - 0.1), position.value);
    case "Enter":
      return selection.value ? useSelection : null;
    case "Escape":
      return () => {
        selection.value = null;
        looping.value = false;
      };
    case "+":
    case "=":
      return () => zoomBy(2, position.value);
    case "-":
      return () => zoomBy(0.5, position.value);
    case "0":
      return () => (view.value = whole(view.value.duration));
  }
  switch (key.toLowerCase()) {
    case "l":
      return () => (looping.value = !looping.value);
    case "m":
      return muteHeard;
    case "b":
      return repeat ? () => undefined : () => (mixtureHeld.value = true);
  }
  const track = /^[1-9]$/.test(key) ? stemTracks()[Number(key) - 1] : undefined;
  return track ? () => toggleSolo(track.id) : null;
}

function select(start: number, end: number): void {
  const limit = view.value.duration;
  if (end > start) selection.value = { start: Math.max(0, start), end: Math.min(end, limit) };
}

function muteHeard(): void {
  const stem = stemTracks().find((track) => track.solo) ?? stemTracks()[0];
  if (stem) setTrack(stem.id, { mute: !stem.mute, solo: false });
}
