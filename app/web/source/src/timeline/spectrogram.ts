// Spectrograms: pictures from the service, by tile.

import { withParameters } from "../api/client";
import { TileCache } from "./tile_cache";
import { TILE_WIDTH, type Tile } from "./tiles";
import { toX, type View } from "./view";

export type PictureTiles = TileCache<HTMLImageElement>;

/** The pictures at `url`, fetched as they are needed; an image sends no key, so `url` has a token where keys are on. */
export function pictureTiles(url: string, height: number): PictureTiles {
  return new TileCache(({ start, end }: Tile, signal) => {
    const parameters = { start: start.toFixed(6), end: end.toFixed(6), width: TILE_WIDTH, height };
    return load(withParameters(url, parameters), signal);
  });
}

function load(url: string, signal: AbortSignal): Promise<HTMLImageElement> {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("The spectrogram cannot be drawn."));
    signal.addEventListener("abort", () => {
      picture.src = "";
      reject(new DOMException("Aborted.", "AbortError"));
    });
    picture.src = url;
  });
}

/** Draws pictures where their tiles are. */
export function drawPictures(
  context: CanvasRenderingContext2D,
  pictures: [Tile, HTMLImageElement][],
  view: View,
  size: { width: number; height: number },
): void {
  for (const [{ start, end }, picture] of pictures) {
    const left = toX(view, start, size.width);
    const right = toX(view, end, size.width);
    context.drawImage(picture, left, 0, right - left, size.height);
  }
}
