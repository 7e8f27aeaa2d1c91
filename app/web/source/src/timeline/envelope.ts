// Waveforms as lowest and highest samples of short stretches, and their drawing.

import type { Peaks } from "../api/types";
import { toX, type View } from "./view";

/** Lowest and highest sample of each point of a stretch, of all channels together; full scale is 1. */
export interface Envelope {
  start: number;
  end: number;
  low: Float32Array;
  high: Float32Array;
}

/** One envelope for all channels. */
export function envelope(peaks: Peaks): Envelope {
  const start = peaks.start ?? 0;
  const low = new Float32Array(peaks.points);
  const high = new Float32Array(peaks.points);
  for (let point = 0; point < peaks.points; point++) {
    low[point] = Math.min(...peaks.channels.map((channel) => channel.minimum[point] ?? 0));
    high[point] = Math.max(...peaks.channels.map((channel) => channel.maximum[point] ?? 0));
  }
  return { start, end: start + peaks.duration, low, high };
}

/** The highest magnitude at a time, linear, in the finest of some envelopes that holds it; null if none does. */
export function levelAt(envelopes: Envelope[], time: number): number | null {
  const found = envelopes.findLast(({ start, end }) => time >= start && time < end);
  if (!found) return null;
  const at = Math.floor(((time - found.start) / (found.end - found.start)) * found.low.length);
  return Math.max(Math.abs(found.low[at] ?? 0), Math.abs(found.high[at] ?? 0));
}

/** Draws envelopes, later ones over earlier ones; `gain` scales the height. */
export function drawEnvelopes(
  context: CanvasRenderingContext2D,
  envelopes: Envelope[],
  view: View,
  size: { width: number; height: number },
  colour: string,
  gain: number,
): void {
  const middle = size.height / 2;
  context.fillStyle = colour;
  for (const { start, end, low, high } of envelopes) {
    const left = Math.max(0, Math.floor(toX(view, start, size.width)));
    const right = Math.min(size.width, Math.ceil(toX(view, end, size.width)));
    context.clearRect(left, 0, right - left, size.height);
    const perPixel = ((view.end - view.start) / size.width / (end - start)) * low.length;
    const offset = ((view.start - start) / (end - start)) * low.length;
    for (let x = left; x < right; x++) {
      const first = Math.min(low.length - 1, Math.max(0, Math.floor(offset + x * perPixel)));
      const last = Math.min(low.length, Math.max(first + 1, Math.ceil(offset + (x + 1) * perPixel)));
      let lowest = 0;
      let highest = 0;
      for (let point = first; point < last; point++) {
        lowest = Math.min(lowest, low[point] ?? 0);
        highest = Math.max(highest, high[point] ?? 0);
      }
      const top = middle - Math.min(1, highest * gain) * middle;
      const bottom = middle - Math.max(-1, lowest * gain) * middle;
      context.fillRect(x, top, 1, Math.max(1, bottom - top));
    }
  }
}
