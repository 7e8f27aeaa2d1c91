// Cache of fetched tiles: a few requests at once, those that are visible first, the longest unused forgotten first.

import { signal } from "@preact/signals";
import { above, levelFor, tileKey, tilesIn, type Tile } from "./tiles";
import type { View } from "./view";

const CONCURRENT = 2; // the service computes them in a sandbox of which each client has a share
const KEPT = 192; // tiles
const ATTEMPTS = 3; // of one tile: the service may be busy with others' for a moment
const RETRY_PAUSE = 2000; // ms before the second attempt, and twice that before the third
const SETTLED = 120; // ms without a change of the view before tiles are requested

export class TileCache<Content> {
  /** Changes whenever a tile has arrived, so that what reads it draws again. */
  readonly arrived = signal(0);
  /** Whether any tile has arrived. */
  readonly hasContent = signal(false);
  /** The reason why the last tile could not be fetched. */
  readonly failure = signal<unknown>(null);
  private readonly contents = new Map<string, Content | null>(); // null: failed
  private readonly running = new Map<string, AbortController>();
  private readonly failures = new Map<string, number>();
  private readonly paused = new Set<string>(); // tiles that failed a moment ago
  private wanted: Tile[] = [];
  private timer: ReturnType<typeof setTimeout> | undefined;
  private closed = false;

  constructor(private readonly fetchTile: (tile: Tile, signal: AbortSignal) => Promise<Content>) {}

  /** The best known tiles that cover a view, coarse ones before the fine ones that are drawn over them. */
  visible(view: View, width: number): [Tile, Content][] {
    const found = new Map<string, [Tile, Content]>();
    const needed = tilesIn(view, levelFor(view, width));
    for (const one of needed) {
      for (const candidate of [one, ...above(one, view.duration)]) {
        const content = this.recall(candidate);
        if (!content) continue;
        found.set(tileKey(candidate), [candidate, content]);
        break;
      }
    }
    this.request(view, needed);
    return [...found.values()].sort(([a], [b]) => a.level - b.level);
  }

  /** Aborts what is under way. */
  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    for (const controller of this.running.values()) controller.abort();
  }

  private recall(one: Tile): Content | null {
    const key = tileKey(one);
    const content = this.contents.get(key);
    if (content === undefined) return null;
    this.contents.delete(key); // to the end of the order of use
    this.contents.set(key, content);
    return content;
  }

  private request(view: View, needed: Tile[]): void {
    const overview = tilesIn({ ...view, start: 0, end: view.duration }, 0);
    this.wanted = [...overview, ...needed].filter((one) => !this.contents.has(tileKey(one)));
    clearTimeout(this.timer);
    if (this.wanted.length) this.timer = setTimeout(() => this.start(), this.contents.size ? SETTLED : 0);
  }

  private start(): void {
    const keys = new Set(this.wanted.map(tileKey));
    for (const [key, controller] of this.running) if (!keys.has(key)) controller.abort();
    for (const one of this.wanted) {
      if (this.running.size >= CONCURRENT) return;
      const key = tileKey(one);
      if (this.running.has(key) || this.contents.has(key) || this.paused.has(key)) continue;
      const controller = new AbortController();
      this.running.set(key, controller);
      void this.fetchTile(one, controller.signal)
        .then((content) => this.keep(key, content))
        .catch((error: unknown) => {
          if (!controller.signal.aborted) this.fail(key, error);
        })
        .finally(() => {
          this.running.delete(key);
          if (!this.closed) this.start();
        });
    }
  }

  private fail(key: string, error: unknown): void {
    const count = (this.failures.get(key) ?? 0) + 1;
    this.failures.set(key, count);
    if (count === ATTEMPTS) {
      this.failure.value = error;
      this.keep(key, null);
      return;
    }
    this.paused.add(key);
    setTimeout(() => {
      this.paused.delete(key);
      if (!this.closed) this.start();
    }, RETRY_PAUSE * count);
  }

  private keep(key: string, content: Content | null): void {
    this.contents.set(key, content);
    if (content !== null) this.hasContent.value = true;
    for (const oldest of this.contents.keys()) {
      if (this.contents.size <= KEPT) break;
      if (oldest !== "0/0") this.contents.delete(oldest);
    }
    this.arrived.value++;
  }
}
