// What came back: stems to hear, see and keep; and the timeline of what is heard.

import { withParameters } from "./service.js";
import { drawStem } from "./waves.js";

const ROWS = 12; // classes shown of a timeline, the longest heard first

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Shows a separation's stems in a container. */
export function showStems(container, job) {
  container.replaceChildren();
  const targets = new Map(job.targets.map((target) => [target.name, target]));
  for (const stem of job.stems) {
    const url = withParameters(stem.url, { redirect: 0 }); // the bytes from here: this page may ask nobody else
    const media = element("audio", { controls: true, preload: "metadata", src: url });
    media.setAttribute("aria-label", stem.name);
    const wave = element("div", { className: "wave" });
    wave.setAttribute("aria-hidden", "true");
    const keep = element("a", { href: withParameters(stem.url, { redirect: 0, download: 1 }) }, `Download ${stem.name}`);
    const said = element("p", {}, ...[describe(stem, targets.get(stem.name)), " ", keep]);
    container.append(element("div", { className: "stem" }, element("h3", {}, stem.name), wave, media, said));
    drawStem(wave, media, url, job.mixture.duration);
  }
  for (const target of job.targets) {
    if (target.error) container.append(element("p", { className: "fault" }, `${target.name}: ${target.error.detail}`));
  }
}

function describe(stem, target) {
  if (!target) return "Everything else.";
  const presence = target.presence;
  const sure = presence === null ? "" : `It is there with a probability of ${Math.round(100 * presence)} %. `;
  return stem.loudness === null ? `${sure}The stem is silent.` : `${sure}${stem.loudness.toFixed(1)} LUFS.`;
}

/** Shows a detection's events as one row a class; `chosen(label)` is called when a row's name is pressed. */
export function showTimeline(list, job, chosen) {
  list.replaceChildren();
  const classes = new Map();
  for (const event of job.events) {
    const found = classes.get(event.label) || { label: event.label, events: [], seconds: 0 };
    found.events.push(event);
    found.seconds += event.end - event.start;
    classes.set(event.label, found);
  }
  const rows = [...classes.values()].sort((a, b) => b.seconds - a.seconds).slice(0, ROWS);
  const length = Math.max(job.audio.duration || 0, ...job.events.map((event) => event.end));
  for (const { label, events } of rows) {
    const name = element("button", { type: "button", title: "Ask for this sound" }, label);
    name.addEventListener("click", () => chosen(label));
    const bars = element("div", { className: "bars" });
    bars.setAttribute("aria-hidden", "true");
    for (const { start, end } of events) {
      const bar = element("span");
      bar.style.left = `${(100 * start) / length}%`;
      bar.style.width = `${(100 * (end - start)) / length}%`;
      bars.append(bar);
    }
    const spoken = events.map(({ start, end }) => `${start.toFixed(1)} to ${end.toFixed(1)} seconds`).join(", ");
    list.append(element("li", {}, name, bars, element("span", { className: "unseen" }, spoken)));
  }
  return rows.length;
}
