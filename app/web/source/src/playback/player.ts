// Players of several tracks on one clock.

export interface Loop {
  start: number;
  end: number;
}

/** Tracks that start, stop and jump together. Times in seconds. */
export interface Player {
  /** Resolves when all tracks can sound. Rejects if one cannot be fetched or decoded. */
  readonly ready: Promise<void>;
  readonly playing: boolean;
  position(): number;
  play(): Promise<void>;
  pause(): void;
  seek(time: number): void;
  setLoop(loop: Loop | null): void;
  setGains(gains: ReadonlyMap<string, number>): void;
  close(): void;
}

export interface Source {
  id: string;
  url: string;
}

const FADE = 0.008; // seconds: a change of gain without a click

/** Moves a gain to its value without a click. */
export function fade(gain: GainNode, value: number, now: number): void {
  gain.gain.setTargetAtTime(value, now, FADE);
}
