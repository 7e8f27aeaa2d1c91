// Play, position, loop and zoom; and the selection with what can be done with it.

import { useRef } from "preact/hooks";
import {
  loadingTracks,
  looping,
  playbackFailure,
  playing,
  position,
  seek,
  selection,
  togglePlay,
} from "../playback/transport";
import { peaks } from "../state/recording";
import { addSpan, addSpanTo, targets } from "../state/targets";
import { levelAt } from "../timeline/envelope";
import { clock } from "../timeline/ticks";
import { fit, rowWidth, view, whole, zoom } from "../timeline/view";
import { Icon } from "./icons";
import { decibels } from "./Stems";
import { hovered, suggestedName } from "./timeline_pointer";

export function Transport() {
  const shown = view.value;
  const middle = Math.min(Math.max(position.value, shown.start), shown.end);
  return (
    <div class="transport bar" role="group" aria-label="Playback">
      <button
        type="button"
        class="play"
        aria-label={playing.value ? "Pause" : "Play"}
        title="Space"
        disabled={playbackFailure.value !== null}
        onClick={() => void togglePlay()}
      >
        <Icon name={playing.value ? "pause" : "play"} />
      </button>
      <span class="time">
        <strong>{clock(position.value)}</strong> <span class="quiet">/ {clock(shown.duration)}</span>
      </span>
      <button
        type="button"
        aria-pressed={looping.value}
        aria-label="Loop"
        title="Repeat the selection (L)"
        onClick={() => (looping.value = !looping.value)}
      >
        <Icon name="loop" /> <span class="wide">Loop</span>
      </button>
      <span class="group" role="group" aria-label="Zoom">
        <button type="button" class="icon-button" aria-label="Zoom out" title="−" onClick={() => zoomBy(0.5, middle)}>
          <Icon name="minus" />
        </button>
        <button
          type="button"
          class="icon-button"
          aria-label="Show all"
          title="0"
          onClick={() => (view.value = whole(shown.duration))}
        >
          <Icon name="fit" />
        </button>
        <button type="button" class="icon-button" aria-label="Zoom in" title="+" onClick={() => zoomBy(2, middle)}>
          <Icon name="plus" />
        </button>
      </span>
      <span class="spring" />
      <Readout />
    </div>
  );
}

export function zoomBy(factor: number, around: number): void {
  view.value = zoom(view.value, factor, around);
}

/** Time and level under the pointer. */
function Readout() {
  const time = hovered.value;
  if (playbackFailure.value) return <span class="quiet readout">{playbackFailure.value}</span>;
  if (playing.value && loadingTracks.value) return <span class="quiet readout">Loading …</span>;
  if (time === null || !peaks.value) return <span class="quiet readout" />;
  const envelopes = peaks.value.visible(view.value, rowWidth.value * devicePixelRatio).map(([, one]) => one);
  const level = levelAt(envelopes, time);
  return (
    <span class="quiet readout">
      {clock(time, 2)}
      {level === null ? "" : `, ${decibels(level)}`}
    </span>
  );
}

/** The selection, or how to make one. */
export function Selection() {
  const span = selection.value;
  const start = useRef<HTMLInputElement>(null);
  const end = useRef<HTMLInputElement>(null);
  const extendable = targets.value.filter(({ query }) => query.kind === "spans");
  if (!span) {
    return (
      <div class="selection bar">
        <span class="quiet">Drag over the recording to point at a sound.</span>
      </div>
    );
  }
  const change = (): void => {
    const [from, to] = [start.current?.valueAsNumber ?? NaN, end.current?.valueAsNumber ?? NaN];
    const limit = view.value.duration;
    if (from >= 0 && to > from && from < limit) selection.value = { start: from, end: Math.min(to, limit) };
  };
  return (
    <div class="selection bar" role="group" aria-label="Selection">
      <button type="button" class="primary" title="Enter" onClick={useSelection}>
        <Icon name="span" /> This sound here
      </button>
      {extendable.map((target) => (
        <button
          key={target.id}
          type="button"
          style={{ "--sound": target.colour }}
          onClick={() => {
            addSpanTo(target, span);
            selection.value = null;
          }}
        >
          <span class="swatch" /> also {target.name}
        </button>
      ))}
      <label class="field">
        From
        <input ref={start} type="number" min={0} step={0.01} value={span.start.toFixed(2)} onChange={change} />
      </label>
      <label class="field">
        to
        <input ref={end} type="number" min={0} step={0.01} value={span.end.toFixed(2)} onChange={change} />
      </label>
      <button type="button" onClick={playSelection}>
        <Icon name="play" /> Play
      </button>
      <button type="button" onClick={() => (view.value = fit(view.value, span.start, span.end))}>
        Zoom in
      </button>
      <button
        type="button"
        class="icon-button"
        aria-label="Clear the selection"
        title="Esc"
        onClick={() => (selection.value = null)}
      >
        <Icon name="close" />
      </button>
    </div>
  );
}

/** Makes the selection a target. */
export function useSelection(): void {
  if (!selection.value) return;
  addSpan(selection.value, suggestedName.value ?? undefined);
  selection.value = null;
  suggestedName.value = null;
}

function playSelection(): void {
  if (!selection.value) return;
  looping.value = true;
  seek(selection.value.start);
  if (!playing.value) void togglePlay();
}
