// Player of long tracks: media elements that fetch what they play by range, kept together by small changes of their speed.

import { fade, type Loop, type Player, type Source } from "./player";

const CHECK = 200; // ms between two looks at the tracks' positions
const TOLERATED = 0.004; // seconds apart that are left alone
const JUMP = 0.15; // seconds apart from which a track jumps instead of hurrying
const STRONGEST = 0.08; // greatest change of speed

/** The speed with which a track that is `behind` seconds behind catches up within about half a second. */
export function catchUpRate(behind: number): number {
  if (Math.abs(behind) <= TOLERATED) return 1;
  return 1 + Math.min(STRONGEST, Math.max(-STRONGEST, behind * 2));
}

export class StreamedPlayer implements Player {
  readonly ready: Promise<void>;
  private readonly elements = new Map<string, HTMLAudioElement>();
  private readonly outputs = new Map<string, GainNode>();
  private context: AudioContext | null = null;
  private gains: ReadonlyMap<string, number> = new Map();
  private loop: Loop | null = null;
  private timer: ReturnType<typeof setInterval> | undefined;
  playing = false;

  constructor(
    sources: Source[],
    private readonly duration: number,
    private readonly onEnd: () => void,
  ) {
    for (const { id, url } of sources) this.elements.set(id, this.element(url));
    this.ready = Promise.all([...this.elements.values()].map(metadata)).then(() => undefined);
    this.ready.catch(() => undefined); // reported by whoever waits for it
  }

  position(): number {
    return this.leader?.currentTime ?? 0;
  }

  async play(): Promise<void> {
    await this.ready;
    const context = (this.context ??= this.connect());
    await context.resume();
    if (this.position() >= this.duration - 0.05) this.seek(0);
    this.playing = true;
    await Promise.all([...this.elements.values()].map((element) => element.play()));
    clearInterval(this.timer);
    this.timer = setInterval(() => this.keepTogether(), CHECK);
  }

  pause(): void {
    this.playing = false;
    clearInterval(this.timer);
    for (const element of this.elements.values()) element.pause();
  }

  seek(time: number): void {
    for (const element of this.elements.values()) element.currentTime = time;
  }

  setLoop(loop: Loop | null): void {
    this.loop = loop;
  }

  setGains(gains: ReadonlyMap<string, number>): void {
    this.gains = gains;
    if (!this.context) return;
    for (const [id, output] of this.outputs) fade(output, gains.get(id) ?? 0, this.context.currentTime);
  }

  close(): void {
    this.pause();
    for (const element of this.elements.values()) {
      element.removeAttribute("src");
      element.load();
      element.remove();
    }
    void this.context?.close();
  }

  private get leader(): HTMLAudioElement | undefined {
    return this.elements.values().next().value;
  }

  private element(url: string): HTMLAudioElement {
    const element = document.createElement("audio");
    element.preload = "metadata";
    element.preservesPitch = false; // stretching would smear, and the changes are too small to hear
    element.src = url;
    element.hidden = true;
    element.onended = () => {
      if (element !== this.leader || !this.playing) return;
      this.pause();
      this.onEnd();
    };
    document.body.append(element);
    return element;
  }

  private connect(): AudioContext {
    const context = new AudioContext();
    for (const [id, element] of this.elements) {
      const output = new GainNode(context, { gain: this.gains.get(id) ?? 0 });
      context.createMediaElementSource(element).connect(output).connect(context.destination);
      this.outputs.set(id, output);
    }
    return context;
  }

  private keepTogether(): void {
    const leader = this.leader;
    if (!leader) return;
    if (this.loop && leader.currentTime >= this.loop.end) this.seek(this.loop.start);
    const others = [...this.elements.values()].slice(1);
    const stalled = others.some((element) => element.readyState < HTMLMediaElement.HAVE_FUTURE_DATA);
    if (stalled && !leader.seeking)
      leader.pause(); // until all of them have something to play
    else if (leader.paused && this.playing) void leader.play();
    for (const element of others) {
      const behind = leader.currentTime - element.currentTime;
      if (element.seeking) continue;
      if (Math.abs(behind) > JUMP) element.currentTime = leader.currentTime;
      else element.playbackRate = catchUpRate(behind);
    }
  }
}

function metadata(element: HTMLAudioElement): Promise<void> {
  return new Promise((resolve, reject) => {
    if (element.readyState >= HTMLMediaElement.HAVE_METADATA) resolve();
    element.addEventListener("loadedmetadata", () => resolve());
    element.addEventListener("error", () => reject(new Error("This browser cannot play the recording.")));
  });
}
