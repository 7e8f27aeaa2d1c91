// The recording on its time axis: marks, overview, waveform, spectrogram, and what lies over all rows.

import { computed } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { MIXTURE } from "../playback/audible";
import { position, selection, toggleSolo, tracks } from "../playback/transport";
import { peaks, pictures, recording, soundOf } from "../state/recording";
import { stems } from "../state/separation";
import { targets } from "../state/targets";
import { drawEnvelopes } from "../timeline/envelope";
import type { PeakTiles } from "../timeline/peaks";
import type { TileCache } from "../timeline/tile_cache";
import { drawPictures, type PictureTiles } from "../timeline/spectrogram";
import { clock, length, ticks } from "../timeline/ticks";
import { rowWidth, scroll, toX, view, whole, type View } from "../timeline/view";
import { Canvas, type Surface } from "./canvas";
import { Lanes } from "./Lanes";
import { Stems } from "./Stems";
import { hovered, pointerDown, pointerLeave, pointerMove, pointerUp, wheel } from "./timeline_pointer";

const HIGHEST = 16; // kHz, of spectrograms

/** A row: its head, and its part of the time axis. `label`: the class that the row shows. */
export function Row(props: { head: ComponentChildren; class: string; label?: string; children: ComponentChildren }) {
  return (
    <div class={`row ${props.class}`}>
      <div class="head">{props.head}</div>
      <div class="lane" data-lane data-label={props.label}>
        {props.children}
      </div>
    </div>
  );
}

export function Timeline() {
  const reference = useRef<HTMLElement>(null);
  const measure = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const section = reference.current;
    const lane = measure.current;
    if (!section || !lane) return;
    const observer = new ResizeObserver(() => {
      rowWidth.value = Math.max(1, lane.clientWidth);
      section.style.setProperty("--lane-left", `${lane.offsetLeft}px`);
    });
    observer.observe(lane);
    section.addEventListener("wheel", wheel, { passive: false });
    return () => observer.disconnect();
  }, []);
  return (
    <section
      class="timeline"
      aria-label="Recording"
      ref={reference}
      onPointerDown={pointerDown}
      onPointerMove={pointerMove}
      onPointerUp={pointerUp}
      onPointerCancel={pointerUp}
      onPointerLeave={pointerLeave}
    >
      <div class="row axis">
        <div class="head" />
        <div class="lane" data-lane ref={measure}>
          <Canvas paint={paintAxis} />
        </div>
      </div>
      <Waveform />
      <Spectrogram />
      <Overview />
      <Lanes />
      <Stems />
      <Overlay />
    </section>
  );
}

function Waveform() {
  const opened = recording.value;
  const sound = opened && soundOf(opened);
  const kind = sound && `${(sound.sample_rate / 1000).toFixed(1)} kHz, ${channels(sound.channels)}`;
  return (
    <Row
      class="waveform"
      head={
        <>
          <strong>Waveform</strong>
          {opened && <span class="quiet">{length(opened.duration)}</span>}
          <span class="quiet">{kind}</span>
          {stems.value.length > 0 && <SoloRecording />}
        </>
      }
    >
      <Canvas paint={(surface) => paintWaveform(surface, peaks.value, surface.colour("var(--wave)"), 1)} />
      <MarkedSpans />
      <PlayheadSlider />
      <Drawing tiles={peaks.value} failed="The waveform cannot be drawn." />
    </Row>
  );
}

function SoloRecording() {
  const isSolo = tracks.value.some(({ id, solo }) => id === MIXTURE && solo);
  return (
    <span>
      <button
        type="button"
        class="small"
        aria-pressed={isSolo}
        aria-label="Solo the recording"
        onClick={() => toggleSolo(MIXTURE)}
      >
        Solo
      </button>
    </span>
  );
}

/** Says that a row is being drawn, or cannot be, until there is something in it. */
export function Drawing({ tiles, failed }: { tiles: TileCache<unknown> | null; failed: string }) {
  if (!tiles || tiles.hasContent.value) return null;
  const isOver = tiles.failure.value !== null;
  return <p class={isOver ? "in-lane" : "in-lane busy"}>{isOver ? failed : "drawing …"}</p>;
}

function Spectrogram() {
  const tiles = pictures.value;
  if (!tiles) return null;
  const opened = recording.value;
  const highest = Math.min(HIGHEST, opened ? soundOf(opened).sample_rate / 2000 : 0);
  return (
    <Row
      class="spectrogram"
      head={
        <>
          <strong>Spectrogram</strong>
          <span class="quiet">40 Hz to {highest.toFixed(0)} kHz</span>
        </>
      }
    >
      <Canvas paint={(surface) => paintPictures(surface, tiles)} />
      <MarkedSpans />
      <Drawing tiles={tiles} failed="The spectrogram cannot be drawn." />
    </Row>
  );
}

/** The whole recording in a thin line, with the visible part marked; it scrolls. */
function Overview() {
  const shown = view.value;
  const everything = whole(shown.duration);
  const ratio = (shown.end - shown.start) / shown.duration;
  const move = (event: PointerEvent): void => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const time = ((event.clientX - box.left) / box.width) * shown.duration;
    view.value = scroll(view.value, time - (view.value.start + view.value.end) / 2);
  };
  return (
    <div class="row overview">
      <div class="head" />
      <div
        class="lane"
        role="scrollbar"
        aria-label="Visible part"
        aria-controls="studio"
        aria-orientation="horizontal"
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={ratio < 1 ? Math.round((100 * shown.start) / (shown.duration - (shown.end - shown.start))) : 0}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          move(event);
        }}
        onPointerMove={(event) => event.buttons && move(event)}
      >
        <div
          class="thumb"
          style={{ left: `${(100 * shown.start) / everything.duration}%`, width: `${100 * ratio}%` }}
        />
      </div>
    </div>
  );
}

function PlayheadSlider() {
  const duration = view.value.duration;
  return (
    <div
      class="playhead-slider"
      role="slider"
      tabIndex={0}
      aria-label="Position"
      aria-valuemin={0}
      aria-valuemax={Math.round(duration * 10) / 10}
      aria-valuenow={Math.round(position.value * 10) / 10}
      aria-valuetext={`${clock(position.value)} of ${clock(duration)}`}
    />
  );
}

const spans = computed(() =>
  targets.value.flatMap(({ query, colour, id }) =>
    query.kind === "spans" ? query.spans.map((span) => ({ ...span, colour, id })) : [],
  ),
);

/** The spans of targets, in a row of the recording. */
function MarkedSpans() {
  return (
    <>
      {spans.value.map(({ start, end, colour, id }) => (
        <div key={`${id}/${start}`} class="marked-span" style={{ ...stretch(start, end), "--sound": colour }} />
      ))}
    </>
  );
}

/** What lies over all rows: the selection, the pointer's line, and the playhead. */
function Overlay() {
  return (
    <div class="overlay" aria-hidden="true">
      {selection.value && <div class="selected" style={stretch(selection.value.start, selection.value.end)} />}
      <HoverLine />
      <Playhead />
    </div>
  );
}

function HoverLine() {
  if (hovered.value === null) return null;
  return (
    <div class="hover-line" style={{ transform: `translateX(${toX(view.value, hovered.value, rowWidth.value)}px)` }} />
  );
}

function Playhead() {
  const x = toX(view.value, position.value, rowWidth.value);
  const hidden = x < 0 || x > rowWidth.value;
  return <div class="playhead" hidden={hidden} style={{ transform: `translateX(${x}px)` }} />;
}

function stretch(start: number, end: number): { left: string; width: string } {
  const left = Math.max(-4, toX(view.value, start, rowWidth.value));
  const right = Math.min(rowWidth.value + 4, toX(view.value, end, rowWidth.value));
  return { left: `${left}px`, width: `${Math.max(0, right - left)}px` };
}

export function paintWaveform(surface: Surface, tiles: PeakTiles | null, colour: string, gain: number): void {
  void tiles?.arrived.value;
  const shown = view.value;
  surface.context.fillStyle = colour;
  surface.context.globalAlpha = 0.4;
  surface.context.fillRect(0, Math.floor(surface.height / 2), surface.width, 1);
  surface.context.globalAlpha = 1;
  if (!tiles) return;
  const envelopes = tiles.visible(shown, surface.width).map(([, envelope]) => envelope);
  drawEnvelopes(surface.context, envelopes, shown, surface, colour, gain);
}

export function paintPictures(surface: Surface, tiles: PictureTiles): void {
  void tiles.arrived.value;
  drawPictures(surface.context, tiles.visible(view.value, surface.width), view.value, surface);
}

function paintAxis({ context, width, height, scale, colour }: Surface): void {
  const shown: View = view.value;
  context.font = `${12 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  for (const { time, label } of ticks(shown, width / scale)) {
    const x = toX(shown, time, width);
    context.fillStyle = colour("var(--line)");
    context.fillRect(Math.round(x), height / 2, scale, height / 2);
    context.fillStyle = colour("var(--quiet)");
    const wide = context.measureText(label).width;
    context.fillText(label, Math.min(x + 4 * scale, width - wide), height / 2 - scale);
  }
}

export function channels(count: number): string {
  return { 1: "mono", 2: "stereo" }[count] ?? `${count} channels`;
}
