// Results of jobs: a separation's stems, and the timeline of a detection.

import { addParameters } from "./api.js";
import { canDrawStem, drawStem } from "./waveform.js";

const MAX_ROWS = 12; // classes in a timeline; those with the most seconds are shown

function createElement(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Shows a separation's stems in a container. */
export function showStems(container, job) {
  container.replaceChildren();
  const targets = new Map(job.targets.map((target) => [target.name, target]));
  for (const stem of job.stems) {
    const url = addParameters(stem.url, { redirect: 0 }); // the page's policy blocks redirects to the object store
    const media = createElement("audio", { controls: true, preload: "metadata", src: url });
    media.setAttribute("aria-label", stem.name);
    const downloadUrl = addParameters(stem.url, { redirect: 0, download: 1 });
    const download = createElement("a", { href: downloadUrl }, `Download ${stem.name}`);
    const description = createElement("p", {}, describeStem(stem, targets.get(stem.name)), " ", download);
    const box = createElement("div", { className: "stem" }, createElement("h3", {}, stem.name), media, description);
    container.append(box);
    if (canDrawStem(job.mixture.duration)) {
      const wave = createElement("div", { className: "wave" });
      wave.setAttribute("aria-hidden", "true");
      media.before(wave);
      drawStem(wave, media, url);
    }
  }
  for (const target of job.targets) {
    if (!target.error) continue;
    container.append(createElement("p", { className: "error" }, `${target.name}: ${target.error.detail}`));
  }
}

function describeStem(stem, target) {
  if (!target) return "Everything else.";
  const { presence } = target;
  const probability = presence === null ? "" : `Present with a probability of ${Math.round(100 * presence)} %. `;
  return probability + (stem.loudness === null ? "The stem is silent." : `${stem.loudness.toFixed(1)} LUFS.`);
}

/** Shows a detection's events by class and returns the number of rows; pressing a class calls `onSelect(label)`. */
export function showTimeline(list, job, onSelect) {
  list.replaceChildren();
  const classes = new Map();
  for (const event of job.events) {
    const entry = classes.get(event.label) || { label: event.label, events: [], seconds: 0 };
    entry.events.push(event);
    entry.seconds += event.end - event.start;
    classes.set(event.label, entry);
  }
  const rows = [...classes.values()].sort((a, b) => b.seconds - a.seconds).slice(0, MAX_ROWS);
  const length = Math.max(job.audio.duration || 0, ...job.events.map((event) => event.end));
  for (const { label, events } of rows) {
    const name = createElement("button", { type: "button", title: "Select this sound" }, label);
    name.addEventListener("click", () => onSelect(label));
    const bars = createElement("div", { className: "bars" });
    bars.setAttribute("aria-hidden", "true");
    for (const { start, end } of events) {
      const bar = createElement("span");
      bar.style.left = `${(100 * start) / length}%`;
      bar.style.width = `${(100 * (end - start)) / length}%`;
      bars.append(bar);
    }
    const times = events.map(({ start, end }) => `${start.toFixed(1)} to ${end.toFixed(1)} seconds`).join(", ");
    list.append(createElement("li", {}, name, bars, createElement("span", { className: "screen-reader" }, times)));
  }
  return rows.length;
}
