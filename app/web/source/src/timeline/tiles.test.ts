import { describe, expect, it } from "vitest";
import { above, levelFor, tilesIn } from "./tiles";
import { clamp, whole } from "./view";

describe("tiles", () => {
  const hour = whole(3600);

  it("cover the view without gaps, and no more than it", () => {
    for (let step = 0; step < 100; step++) {
      const view = clamp(hour, 36 * step, 3600 / (1 + step) ** 1.5);
      const tiles = tilesIn(view, levelFor(view, 1600));
      expect(tiles[0]?.start).toBeLessThanOrEqual(view.start);
      expect(tiles.at(-1)?.end).toBeGreaterThanOrEqual(view.end - 1e-9);
      tiles.slice(1).forEach((tile, at) => expect(tile.start).toBeCloseTo(tiles[at]?.end ?? NaN, 6));
      expect(tiles.length).toBeLessThanOrEqual(5); // what a screen needs does not grow with the recording
    }
  });

  it("are the whole recording at first", () => {
    expect(levelFor(hour, 1024)).toBe(0);
    expect(tilesIn(hour, 0)).toEqual([{ level: 0, index: 0, start: 0, end: 3600 }]);
  });

  it("stand in for finer ones that lie inside of them", () => {
    const [fine] = tilesIn(clamp(hour, 1234, 10), 8);
    expect(fine).toBeDefined();
    if (!fine) return;
    const coarser = above(fine, 3600);
    expect(coarser.map(({ level }) => level)).toEqual([7, 6, 5, 4, 3, 2, 1, 0]);
    for (const { start, end } of coarser) {
      expect(start).toBeLessThanOrEqual(fine.start);
      expect(end).toBeGreaterThanOrEqual(fine.end);
    }
  });
});
