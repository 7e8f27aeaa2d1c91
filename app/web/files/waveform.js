// Waveforms, drawn by wavesurfer.js above the browser's own audio controls.

import Regions from "./vendor/regions.esm.js";
import WaveSurfer from "./vendor/wavesurfer.esm.js";

const MAX_DECODED_SECONDS = 600; // decoding longer audio in the browser takes too much memory
const DECODED_RATE = 32000; // Hz; wavesurfer's default of 8000 leaves out high sounds such as birds

function colours() {
  const style = getComputedStyle(document.documentElement);
  const played = style.getPropertyValue("--played").trim();
  return { waveColor: style.getPropertyValue("--wave").trim(), progressColor: played, cursorColor: played };
}

function surferOptions(container, media) {
  return { container, media, height: 64, ...colours(), cspNonce: document.documentElement.dataset.nonce };
}

/** The mixture's waveform, drawn from the API's peaks; calls `onSpan(start, end)` when a span is marked. */
export class MixtureWaveform {
  constructor(container, media, peaks, duration, url, onSpan) {
    this.regions = Regions.create();
    this.colour = `color-mix(in srgb, ${colours().progressColor} 25%, transparent)`;
    const plugins = [this.regions];
    this.surfer = WaveSurfer.create({ ...surferOptions(container, media), url, peaks, duration, plugins });
    this.onSpan = onSpan;
    this.regions.on("region-created", (region) => this.keepOnly(region));
    this.regions.on("region-updated", (region) => this.onSpan(region.start, region.end));
  }

  /** Switches marking of spans by dragging on or off. */
  setMarking(enabled) {
    this.stopMarking?.();
    this.stopMarking = enabled ? this.regions.enableDragSelection({ color: this.colour }) : undefined;
    if (!enabled) this.regions.clearRegions();
  }

  keepOnly(region) {
    for (const other of this.regions.getRegions()) if (other !== region) other.remove();
    this.onSpan(region.start, region.end);
  }

  /** Shows a span in seconds. */
  showSpan(start, end) {
    const [shown] = this.regions.getRegions();
    if (shown) shown.setOptions({ start, end });
    else this.regions.addRegion({ start, end, color: this.colour });
  }

  destroy() {
    this.surfer.destroy();
  }
}

/** Returns whether a stem of `duration` seconds is short enough to be decoded and drawn in the browser. */
export function canDrawStem(duration) {
  return duration <= MAX_DECODED_SECONDS;
}

/** Draws a stem's waveform from its samples. */
export function drawStem(container, media, url) {
  const surfer = WaveSurfer.create({ ...surferOptions(container, media), url, sampleRate: DECODED_RATE });
  surfer.on("error", () => container.replaceChildren()); // the browser cannot decode the format
}
