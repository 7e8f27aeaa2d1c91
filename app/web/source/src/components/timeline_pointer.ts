// Pointers over the time axis: click to seek, drag to select, drag an edge to change the selection, pinch and wheel to zoom.

import { signal } from "@preact/signals";
import type { Span } from "../api/types";
import { seek, selecting, selection } from "../playback/transport";
import { addLabel } from "../state/targets";
import { clamp, rowWidth, scroll, toTime, toX, view, zoom } from "../timeline/view";

/** The time under the pointer, or null. */
export const hovered = signal<number | null>(null);
/** The name that a selection suggests: of the lane in which it was made. */
export const suggestedName = signal<string | null>(null);

const DRAG = 4; // CSS pixels: less is a click
const EDGE = 10; // CSS pixels around an edge of the selection

interface Gesture {
  anchor: number; // seconds: the end that stays
  x: number; // where the pointer went down
  dragging: boolean;
  label: string | null;
  onClick: () => void;
}

let gesture: Gesture | null = null;
const touches = new Map<number, number>(); // x of each finger

/** The part of the page that shows the time axis, and where in it the pointer is. */
function place(event: PointerEvent | WheelEvent): { lane: HTMLElement; x: number } | null {
  const lane = (event.target as Element).closest<HTMLElement>("[data-lane]");
  return lane && { lane, x: event.clientX - lane.getBoundingClientRect().left };
}

export function pointerDown(event: PointerEvent): void {
  const found = place(event);
  if (!found || event.button !== 0) return;
  const { lane, x } = found;
  touches.set(event.pointerId, x);
  lane.setPointerCapture(event.pointerId);
  if (touches.size > 1) {
    gesture = null;
    return;
  }
  const edge = edgeAt(x);
  const time = toTime(view.value, x, rowWidth.value);
  const label = lane.dataset.label ?? null;
  gesture = {
    anchor: edge ? edge.other : time,
    x,
    dragging: edge !== null,
    label,
    onClick: () => (label ? addLabel(label) : seek(time)),
  };
}

export function pointerMove(event: PointerEvent): void {
  const found = place(event);
  if (!found) {
    hovered.value = null;
    return;
  }
  const { lane, x } = found;
  hovered.value = toTime(view.value, x, rowWidth.value);
  if (touches.size > 1) return pinch(event.pointerId, x);
  if (!gesture) {
    lane.style.cursor = edgeAt(x) ? "ew-resize" : "";
    return;
  }
  if (!gesture.dragging && Math.abs(x - gesture.x) < DRAG) return;
  if (!gesture.dragging) suggestedName.value = gesture.label;
  gesture.dragging = true;
  selecting.value = true;
  const time = toTime(view.value, x, rowWidth.value);
  selection.value = { start: Math.min(gesture.anchor, time), end: Math.max(gesture.anchor, time) };
}

export function pointerUp(event: PointerEvent): void {
  touches.delete(event.pointerId);
  const ended = gesture;
  gesture = null;
  selecting.value = false;
  if (ended && !ended.dragging && event.type === "pointerup") ended.onClick();
}

export function pointerLeave(): void {
  hovered.value = null;
}

/** Zooms with Ctrl or Cmd (and a trackpad's pinch), scrolls with Shift or sideways; else the page scrolls. */
export function wheel(event: WheelEvent): void {
  const found = place(event);
  if (!found) return;
  hovered.value = toTime(view.value, found.x, rowWidth.value);
  const seconds = (view.value.end - view.value.start) / rowWidth.value;
  if (event.ctrlKey || event.metaKey) {
    event.preventDefault();
    const around = toTime(view.value, found.x, rowWidth.value);
    view.value = zoom(view.value, Math.exp(-event.deltaY * 0.004), around);
  } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    event.preventDefault();
    view.value = scroll(view.value, (event.deltaX || event.deltaY) * seconds);
  }
}

function pinch(id: number, x: number): void {
  const other = [...touches].find(([touch]) => touch !== id)?.[1];
  const before = touches.get(id);
  touches.set(id, x);
  if (other === undefined || before === undefined) return;
  const [from, to] = [Math.abs(before - other), Math.abs(x - other)];
  if (from < 16 || to < 16) return;
  const fixed = toTime(view.value, other, rowWidth.value);
  const length = ((view.value.end - view.value.start) * from) / to;
  view.value = clamp(view.value, fixed - (other / rowWidth.value) * length, length);
}

function edgeAt(x: number): { other: number } | null {
  const span: Span | null = selection.value;
  if (!span) return null;
  const [start, end] = [toX(view.value, span.start, rowWidth.value), toX(view.value, span.end, rowWidth.value)];
  const reach = Math.min(EDGE, (end - start) / 3 + 2);
  if (Math.abs(x - start) <= reach) return { other: span.end };
  if (Math.abs(x - end) <= reach) return { other: span.start };
  return null;
}
