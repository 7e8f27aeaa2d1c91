import { describe, expect, it } from "vitest";
import { clamp, fit, reveal, scroll, toTime, toX, whole, zoom } from "./view";

describe("view", () => {
  const all = whole(100);

  it("keeps the time under the pointer in place while zooming", () => {
    let view = all;
    for (const factor of [2, 3, 0.7, 5]) {
      const before = toX(view, 40, 800);
      view = zoom(view, factor, 40);
      expect(toX(view, 40, 800)).toBeCloseTo(before, 6);
    }
  });

  it("never leaves the recording", () => {
    for (let step = 0; step < 200; step++) {
      const start = Math.sin(step) * 150;
      const view = scroll(zoom(clamp(all, start, 3 + step), 1 + Math.cos(step), start), start);
      expect(view.start).toBeGreaterThanOrEqual(0);
      expect(view.end).toBeLessThanOrEqual(100 + 1e-9);
      expect(view.end - view.start).toBeGreaterThanOrEqual(0.05 - 1e-9);
    }
  });

  it("turns pixels into times and back", () => {
    const view = clamp(all, 20, 30);
    expect(toTime(view, toX(view, 33.3, 777), 777)).toBeCloseTo(33.3, 9);
    expect(toTime(view, -50, 777)).toBe(20 - (50 / 777) * 30);
    expect(toTime(all, -50, 777)).toBe(0);
  });

  it("pages on to the playhead, and only if it is outside", () => {
    const view = clamp(all, 20, 10);
    expect(reveal(view, 25)).toBe(view);
    expect(reveal(view, 31).start).toBeCloseTo(30.5);
    expect(reveal(view, 99).end).toBe(100);
  });

  it("shows a stretch with a margin", () => {
    expect(fit(all, 40, 50)).toMatchObject({ start: 39, end: 51 });
  });
});
