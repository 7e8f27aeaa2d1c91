// Waveforms: peaks from the service, by tile.

import { request, withParameters } from "../api/client";
import type { Peaks } from "../api/types";
import { envelope, type Envelope } from "./envelope";
import { TileCache } from "./tile_cache";
import { TILE_WIDTH, type Tile } from "./tiles";

export type PeakTiles = TileCache<Envelope>;

/** The peaks at `url`, fetched as they are needed; `refines`: whether the service gives peaks of stretches. */
export function peakTiles(url: string, refines: boolean): PeakTiles {
  return new TileCache(async ({ level, start, end }: Tile, signal) => {
    const stretch = refines && level > 0 ? { start: start.toFixed(6), end: end.toFixed(6) } : {};
    if (!refines && level > 0) throw new Error("no finer peaks");
    const points = refines ? TILE_WIDTH : 4 * TILE_WIDTH;
    return envelope(await request<Peaks>(withParameters(url, { points, ...stretch }), { signal }));
  });
}
