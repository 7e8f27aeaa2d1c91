import { expect, it } from "vitest";
import { clock, length, ticks } from "./ticks";
import { clamp, whole } from "./view";

it.each([
  [0, 1, "0:00.0"],
  [59.96, 1, "1:00.0"],
  [75.5, 0, "1:16"],
  [3725.25, 2, "1:02:05.25"],
])("writes %d s as a clock does", (seconds, digits, text) => {
  expect(clock(seconds, digits)).toBe(text);
});

it("says lengths as people do", () => {
  expect([5.97, 245, 3725].map(length)).toEqual(["6.0 s", "4 min 5 s", "1 h 2 min"]);
});

it("marks round times, far enough apart to be read, at every zoom", () => {
  for (const duration of [0.3, 6, 61, 3600, 21600]) {
    for (const zoomed of [1, 10, 100]) {
      const view = clamp(whole(duration), duration / 3, duration / zoomed);
      const marks = ticks(view, 800);
      const pixels = marks.map(({ time }) => ((time - view.start) / (view.end - view.start)) * 800);
      for (const [at, x] of pixels.slice(1).entries()) expect(x - (pixels[at] ?? 0)).toBeGreaterThan(71);
      expect(new Set(marks.map(({ label }) => label)).size).toBe(marks.length);
    }
  }
});
