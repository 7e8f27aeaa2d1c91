// Marks of the time axis, and times as text.

import type { View } from "./view";

const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const LEAST_DISTANCE = 72; // CSS pixels between two labels

export interface Tick {
  time: number;
  label: string;
}

/** The labelled marks of an axis that is `width` wide. */
export function ticks(view: View, width: number): Tick[] {
  const length = view.end - view.start;
  const step = STEPS.find((one) => (one / length) * width >= LEAST_DISTANCE) ?? 14400;
  const marks: Tick[] = [];
  for (let index = Math.ceil(view.start / step - 1e-9); index * step <= view.end + 1e-9; index++) {
    marks.push({ time: index * step, label: clock(index * step, step < 1 ? (step < 0.1 ? 2 : 1) : 0) });
  }
  return marks;
}

/** Seconds as `1:02:03.4`, with hours only where there are some. */
export function clock(seconds: number, digits = 1): string {
  const rounded = Number(seconds.toFixed(digits));
  const hours = Math.floor(rounded / 3600);
  const minutes = Math.floor(rounded / 60) % 60;
  const rest = (rounded % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** A length as people say it: `6.0 s`, `4 min 5 s`, `1 h 2 min`. */
export function length(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
}
