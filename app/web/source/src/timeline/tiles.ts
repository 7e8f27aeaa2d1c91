// Tiles of a recording: level 0 is the whole, each further level halves them. Peaks and spectrograms are fetched by tile.

import type { View } from "./view";

export interface Tile {
  level: number;
  index: number;
  start: number;
  end: number;
}

export const TILE_WIDTH = 1024; // columns of a tile
const SHORTEST = 0.25; // seconds of a tile: finer ones would show nothing new

/** The tile of a level that begins at `index` tile lengths. */
export function tile(duration: number, level: number, index: number): Tile {
  const size = duration / 2 ** level;
  return { level, index, start: index * size, end: Math.min((index + 1) * size, duration) };
}

/** The coarsest level with at least as many columns as the screen has pixels (`width`, device pixels). */
export function levelFor(view: View, width: number): number {
  const wanted = (width * view.duration) / ((view.end - view.start) * TILE_WIDTH);
  const finest = Math.max(0, Math.floor(Math.log2(view.duration / SHORTEST)));
  return Math.min(finest, Math.max(0, Math.ceil(Math.log2(wanted) - 0.25)));
}

/** The tiles of a level that a view touches, from left to right. */
export function tilesIn(view: View, level: number): Tile[] {
  const size = view.duration / 2 ** level;
  const first = Math.floor(view.start / size);
  const last = Math.min(Math.ceil(view.end / size), 2 ** level) - 1;
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, at) => tile(view.duration, level, first + at));
}

/** The tiles to draw at a tile's place while it is missing: those above it, the finest first. */
export function above(wanted: Tile, duration: number): Tile[] {
  return Array.from({ length: wanted.level }, (_, at) => {
    const level = wanted.level - 1 - at;
    return tile(duration, level, wanted.index >> (at + 1));
  });
}

/** A tile's key in a cache. */
export function tileKey({ level, index }: Tile): string {
  return `${level}/${index}`;
}
