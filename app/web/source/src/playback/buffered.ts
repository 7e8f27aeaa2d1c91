// Player of decoded tracks: Web Audio starts all of them at the same sample.

import { fade, type Loop, type Player, type Source } from "./player";

const AHEAD = 0.05; // seconds between the command and the first sample, so that all sources are ready for it

interface Sounding {
  sources: AudioBufferSourceNode[];
  offset: number; // of the recording, at `from`
  from: number; // time of the context
  loop: Loop | null;
}

export class BufferedPlayer implements Player {
  readonly ready: Promise<void>;
  private readonly buffers = new Map<string, AudioBuffer>();
  private readonly outputs = new Map<string, GainNode>();
  private readonly aborted = new AbortController();
  private context: AudioContext | null = null;
  private gains: ReadonlyMap<string, number> = new Map();
  private loop: Loop | null = null;
  private stopped = 0; // position while nothing sounds
  private sounding: Sounding | null = null;

  /** `rate`: of the recording in hertz; `onEnd` is called when the end is reached. */
  constructor(
    sources: Source[],
    private readonly duration: number,
    rate: number,
    private readonly onEnd: () => void,
  ) {
    this.ready = this.load(sources, rate);
    this.ready.catch(() => undefined); // reported by whoever waits for it
  }

  get playing(): boolean {
    return this.sounding !== null;
  }

  position(): number {
    if (!this.sounding || !this.context) return this.stopped;
    const { offset, from, loop } = this.sounding;
    const reached = offset + Math.max(0, this.context.currentTime - from);
    if (loop && reached > loop.end) return loop.start + ((reached - loop.start) % (loop.end - loop.start));
    return Math.min(reached, this.duration);
  }

  async play(): Promise<void> {
    await this.ready;
    this.context ??= new AudioContext();
    await this.context.resume();
    if (!this.sounding && !this.aborted.signal.aborted)
      this.start(this.stopped >= this.duration - 0.01 ? 0 : this.stopped);
  }

  pause(): void {
    this.stopped = this.position();
    this.silence();
  }

  seek(time: number): void {
    this.stopped = Math.min(Math.max(time, 0), this.duration);
    if (this.sounding) this.start(this.stopped);
  }

  setLoop(loop: Loop | null): void {
    this.loop = loop;
    if (this.sounding) this.start(this.position());
  }

  setGains(gains: ReadonlyMap<string, number>): void {
    this.gains = gains;
    if (!this.context) return;
    for (const [id, output] of this.outputs) fade(output, gains.get(id) ?? 0, this.context.currentTime);
  }

  close(): void {
    this.aborted.abort();
    this.silence();
    void this.context?.close();
  }

  private async load(sources: Source[], rate: number): Promise<void> {
    const decoder = new OfflineAudioContext(1, 1, Math.min(Math.max(rate, 8000), 96000));
    await Promise.all(
      sources.map(async ({ id, url }) => {
        const response = await fetch(url, { signal: this.aborted.signal });
        if (!response.ok) throw new Error(`The service answered ${response.status}.`);
        this.buffers.set(id, await decoder.decodeAudioData(await response.arrayBuffer()));
      }),
    );
  }

  private start(offset: number): void {
    this.silence();
    const context = this.context;
    if (!context) return;
    const loop = this.loop && offset < this.loop.end ? this.loop : null;
    const from = context.currentTime + AHEAD;
    const sources = [...this.buffers].map(([id, buffer]) => {
      const source = new AudioBufferSourceNode(context, { buffer });
      if (loop) Object.assign(source, { loop: true, loopStart: loop.start, loopEnd: loop.end });
      source.connect(this.output(context, id));
      source.start(from, offset);
      return source;
    });
    const sounding = (this.sounding = { sources, offset, from, loop });
    if (sources[0]) sources[0].onended = () => this.end(sounding);
  }

  private output(context: AudioContext, id: string): GainNode {
    let output = this.outputs.get(id);
    if (!output) {
      output = new GainNode(context, { gain: this.gains.get(id) ?? 0 });
      output.connect(context.destination);
      this.outputs.set(id, output);
    }
    return output;
  }

  private end(sounding: Sounding): void {
    if (this.sounding !== sounding) return;
    this.silence();
    this.stopped = this.duration;
    this.onEnd();
  }

  private silence(): void {
    for (const source of this.sounding?.sources ?? []) {
      source.onended = null;
      source.stop();
      source.disconnect();
    }
    this.sounding = null;
  }
}
