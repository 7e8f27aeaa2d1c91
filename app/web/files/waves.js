// Waveforms, drawn by wavesurfer.js under the browser's own audio controls.

import Regions from "./vendor/regions.esm.js";
import WaveSurfer from "./vendor/wavesurfer.esm.js";

const LONGEST_DECODED = 600; // seconds: what is longer would need too much memory to be drawn from its samples
const RATE = 32000; // hertz of those samples; at wavesurfer's usual 8000 birds would be silent

function colours() {
  const style = getComputedStyle(document.documentElement);
  const mark = style.getPropertyValue("--played").trim();
  return { waveColor: style.getPropertyValue("--wave").trim(), progressColor: mark, cursorColor: mark };
}

function options(container, media) {
  return { container, media, height: 64, ...colours(), cspNonce: document.documentElement.dataset.nonce };
}

/** The mixture's waveform, from peaks that the service has drawn; `marked(start, end)` is called when a span is. */
export class MixtureWave {
  constructor(container, media, peaks, duration, url, marked) {
    container.replaceChildren();
    this.regions = Regions.create();
    this.colour = `color-mix(in srgb, ${colours().progressColor} 25%, transparent)`;
    this.surfer = WaveSurfer.create({ ...options(container, media), url, peaks, duration, plugins: [this.regions] });
    this.marked = marked;
    this.regions.on("region-created", (region) => this.keepOnly(region));
    this.regions.on("region-updated", (region) => this.marked(region.start, region.end));
  }

  /** Lets spans be marked by dragging, or not. */
  letMark(on) {
    this.stopMarking?.();
    this.stopMarking = on ? this.regions.enableDragSelection({ color: this.colour }) : undefined;
    if (!on) this.regions.clearRegions();
  }

  keepOnly(region) {
    for (const other of this.regions.getRegions()) if (other !== region) other.remove();
    this.marked(region.start, region.end);
  }

  /** Shows a span that was typed. */
  show(start, end) {
    const [shown] = this.regions.getRegions();
    if (shown) shown.setOptions({ start, end });
    else this.regions.addRegion({ start, end, color: this.colour });
  }

  destroy() {
    this.surfer.destroy();
  }
}

/** A stem's waveform, from its samples; nothing where it is too long for that. */
export function drawStem(container, media, url, duration) {
  if (!(duration <= LONGEST_DECODED)) return;
  const surfer = WaveSurfer.create({ ...options(container, media), url, sampleRate: RATE });
  surfer.on("error", () => container.replaceChildren()); // a format that this browser does not decode
}
