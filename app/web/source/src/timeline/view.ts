// The visible part of the time axis, in seconds, that all rows of the studio share.

import { signal } from "@preact/signals";

export interface View {
  readonly start: number;
  readonly end: number;
  readonly duration: number; // of the whole recording
}

const SHORTEST = 0.05; // seconds that fill the screen at the greatest zoom

/** The whole of a recording. */
export function whole(duration: number): View {
  return { start: 0, end: Math.max(duration, SHORTEST), duration: Math.max(duration, SHORTEST) };
}

/** The view with another start and length, moved and cut so that it stays inside of the recording. */
export function clamp(view: View, start: number, length: number): View {
  const shown = Math.min(Math.max(length, SHORTEST), view.duration);
  const first = Math.min(Math.max(start, 0), view.duration - shown);
  return { ...view, start: first, end: first + shown };
}

/** Zooms in (`factor` above 1) or out; the time `around` stays where it is on the screen. */
export function zoom(view: View, factor: number, around: number): View {
  const length = (view.end - view.start) / factor;
  const limited = Math.min(Math.max(length, SHORTEST), view.duration);
  const part = (around - view.start) / (view.end - view.start);
  return clamp(view, around - part * limited, limited);
}

/** Moves the view by seconds. */
export function scroll(view: View, seconds: number): View {
  return clamp(view, view.start + seconds, view.end - view.start);
}

/** The view that shows a stretch with a little around it. */
export function fit(view: View, start: number, end: number): View {
  const margin = (end - start) * 0.1;
  return clamp(view, start - margin, end - start + 2 * margin);
}

/** Moves the view on by a page, if the time is outside of it. */
export function reveal(view: View, time: number): View {
  const length = view.end - view.start;
  if (time >= view.start && time <= view.end) return view;
  return clamp(view, time - length * 0.05, length);
}

/** Pixels from the left edge of a row that is `width` wide. */
export function toX(view: View, time: number, width: number): number {
  return ((time - view.start) / (view.end - view.start)) * width;
}

/** Seconds at a pixel, inside of the recording. */
export function toTime(view: View, x: number, width: number): number {
  const time = view.start + (x / width) * (view.end - view.start);
  return Math.min(Math.max(time, 0), view.duration);
}

/** The shown view. */
export const view = signal<View>(whole(1));

/** Width of the rows in CSS pixels. */
export const rowWidth = signal(800);
