// What is heard, as lanes in the time axis: a press makes a class a target, a drag over an event a span.

import { signal } from "@preact/signals";
import { detection, heardLanes, listen } from "../state/detection";
import { recording } from "../state/recording";
import { addLabel, remove, targets } from "../state/targets";
import type { Lane } from "../timeline/lanes";
import { length } from "../timeline/ticks";
import { toX, view } from "../timeline/view";
import { Canvas, type Surface } from "./canvas";
import { Row } from "./Timeline";

const FEW = 6; // lanes that are shown at first
const showsAll = signal(false);

export function Lanes() {
  if (!recording.value) return null;
  const all = heardLanes.value;
  const shown = showsAll.value ? all : all.slice(0, FEW);
  return (
    <>
      <div class="row caption">
        <div class="head">
          <h2>Heard in it</h2>
        </div>
        <p class="lane" role="status">
          <State />
        </p>
      </div>
      {shown.map((lane) => (
        <HeardLane key={lane.label} lane={lane} />
      ))}
      {all.length > FEW && (
        <div class="row more">
          <div class="head" />
          <div class="lane">
            <button type="button" class="link" onClick={() => (showsAll.value = !showsAll.value)}>
              {showsAll.value ? "Show fewer" : `Show ${all.length - FEW} more`}
            </button>
          </div>
        </div>
      )}
    </>
  );
}

function State() {
  const state = detection.value;
  if (state.kind === "listening") {
    const waiting = state.position > 0 ? `waiting, place ${state.position} in the queue` : "listening …";
    return (
      <span class="quiet busy">{state.ratio > 0 ? `listening, ${Math.round(100 * state.ratio)} %` : waiting}</span>
    );
  }
  if (state.kind === "heard") {
    const hint = state.lanes.length
      ? "Press a name to ask for that sound, or drag over the moment you mean."
      : "Nothing was recognised with certainty. Drag over the sound, or describe it.";
    return <span class="quiet">{[hint, ...state.warnings].join(" ")}</span>;
  }
  return (
    <span class="quiet">
      {state.kind === "failed" && `${state.text} ${state.code ? `(${state.code}) ` : ""}`}
      <button type="button" class="link" onClick={() => void listen()}>
        {state.kind === "failed" ? "Listen again" : "Listen to what is in it"}
      </button>
    </span>
  );
}

function HeardLane({ lane }: { lane: Lane }) {
  const target = targets.value.find(({ query }) => query.kind === "label" && query.label === lane.label);
  const seconds = lane.events.reduce((sum, event) => sum + event.end - event.start, 0);
  return (
    <Row
      class="heard"
      label={lane.label}
      head={
        <button
          type="button"
          class="heard-name"
          aria-pressed={target !== undefined}
          style={{ "--sound": target?.colour ?? "transparent" }}
          title={`${lane.label}: ${length(seconds)}, up to ${Math.round(100 * lane.confidence)} % sure`}
          onClick={() => (target ? remove(target.id) : addLabel(lane.label))}
        >
          <span class="swatch" />
          <span class="clip">{lane.label}</span>
        </button>
      }
    >
      <Canvas paint={(surface) => paintEvents(surface, lane, surface.colour(target?.colour ?? "var(--ink)"))} />
    </Row>
  );
}

function paintEvents({ context, width, height, scale }: Surface, lane: Lane, colour: string): void {
  context.fillStyle = colour;
  for (const { start, end, confidence } of lane.events) {
    const left = toX(view.value, start, width);
    const right = toX(view.value, end, width);
    if (right < 0 || left > width) continue;
    context.globalAlpha = 0.2 + 0.6 * confidence;
    context.beginPath();
    context.roundRect(left, 4 * scale, Math.max(2 * scale, right - left - scale), height - 8 * scale, 3 * scale);
    context.fill();
  }
  context.globalAlpha = 1;
}
