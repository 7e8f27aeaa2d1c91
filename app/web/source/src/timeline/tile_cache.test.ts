import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { TileCache } from "./tile_cache";
import { tileKey, type Tile } from "./tiles";
import { clamp, whole } from "./view";

describe("tile cache", () => {
  const hour = whole(3600);
  let asked: { key: string; signal: AbortSignal; resolve: (content: string) => void; reject: (error: Error) => void }[];
  let cache: TileCache<string>;

  beforeEach(() => {
    vi.useFakeTimers();
    asked = [];
    cache = new TileCache((tile: Tile, signal) => {
      return new Promise<string>((resolve, reject) => asked.push({ key: tileKey(tile), signal, resolve, reject }));
    });
  });
  afterEach(() => {
    cache.close();
    vi.useRealTimers();
  });

  const answer = async (key: string): Promise<void> => {
    asked.find((one) => one.key === key)?.resolve(key);
    await vi.advanceTimersByTimeAsync(200);
  };

  it("asks for the whole first, and draws it until finer tiles are there", async () => {
    const near = clamp(hour, 1000, 60);
    expect(cache.visible(near, 1024)).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    expect(asked[0]?.key).toBe("0/0");
    expect(asked).toHaveLength(2); // at once
    await answer("0/0");
    expect(cache.visible(near, 1024).map(([, content]) => content)).toEqual(["0/0"]);
    const fine = asked.slice(1).map(({ key }) => key);
    for (const key of fine) await answer(key);
    expect(cache.visible(near, 1024).map(([, content]) => content)).toEqual(fine);
  });

  it("gives up what is not in view any more", async () => {
    cache.visible(hour, 1024);
    await vi.advanceTimersByTimeAsync(200);
    await answer("0/0");
    cache.visible(clamp(hour, 0, 60), 1024);
    await vi.advanceTimersByTimeAsync(200);
    const before = asked.at(-1);
    cache.visible(clamp(hour, 3000, 60), 1024);
    await vi.advanceTimersByTimeAsync(200);
    expect(before?.signal.aborted).toBe(true);
  });

  it("tries again while the service is busy, three times in all", async () => {
    cache.visible(hour, 1024);
    await vi.advanceTimersByTimeAsync(200);
    for (const attempt of [1, 2, 3]) {
      expect(asked).toHaveLength(attempt);
      expect(cache.failure.value).toBeNull();
      asked.at(-1)?.reject(new Error("busy"));
      await vi.advanceTimersByTimeAsync(10_000);
    }
    expect(asked).toHaveLength(3);
    expect(cache.failure.value).toEqual(new Error("busy"));
  });
});
