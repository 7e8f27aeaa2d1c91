// The page: what is chosen becomes one request; what happens to it is shown.

import { showStems, showTimeline } from "./results.js";
import { ask, follow, Refused, upload, useKey, withParameters } from "./service.js";
import { MixtureWave } from "./waves.js";

const POINTS = 2000; // of the waveform: about a screen's width
const SEARCH_PAUSE = 250; // ms after the last letter
const KEPT = "earmark-key"; // in this tab's storage

const byId = (id) => document.getElementById(id);
const way = () => document.querySelector("input[name=way]:checked").value;
let uploading = null; // what breaks the latest upload of a recording off
let mixture = null; // the upload
let wave = null;
let job = null; // the separation under way

function fault(error) {
  const box = byId("fault");
  box.hidden = error === null;
  box.textContent = error === null ? "" : error instanceof Refused ? error.message : `Something went wrong: ${error.message}`;
  if (error instanceof Refused && error.status === 401) {
    byId("key-box").open = true;
    byId("key").focus();
  }
}

const waits = new Map(); // by button: for how many things it does

/** Runs one thing that a person asked for: its button rests until all such things are over; its failure is told. */
async function doing(button, act) {
  fault(null);
  waits.set(button, (waits.get(button) || 0) + 1);
  button.disabled = true;
  try {
    await act();
  } catch (error) {
    fault(error);
  } finally {
    waits.set(button, waits.get(button) - 1);
    button.disabled = waits.get(button) > 0;
  }
}

// The recording

async function take(file) {
  const state = byId("recording-state");
  uploading?.abort(); // the recording that was chosen last counts
  const mine = (uploading = new AbortController());
  mixture = null;
  byId("mixture").hidden = true;
  byId("detection").hidden = true;
  state.textContent = `Uploading ${file.name} …`;
  try {
    mixture = await upload(file, mine.signal);
  } catch (error) {
    if (mine !== uploading) return;
    state.textContent = "";
    throw error;
  }
  const length = mixture.duration === null ? "" : `, ${mixture.duration.toFixed(1)} s`;
  state.textContent = `${mixture.filename || file.name}: ${mixture.codec}, ${mixture.sample_rate} Hz, ${mixture.channels} ch${length}`;
  byId("mixture").hidden = false;
  draw(mixture).catch(fault); // meanwhile, more can be chosen
}

async function draw(audio) {
  const url = withParameters(audio.url, { redirect: 0 });
  byId("mixture-audio").src = url;
  wave?.destroy();
  wave = null;
  const drawn = await ask(`/v1/audio/${audio.id}/peaks?points=${POINTS}`);
  if (audio !== mixture) return; // another was chosen meanwhile
  const peaks = drawn.channels.slice(0, 1).map(({ minimum, maximum }) => minimum.flatMap((low, at) => [maximum[at], low]));
  wave = new MixtureWave(byId("mixture-wave"), byId("mixture-audio"), peaks, drawn.duration, url, (start, end) => {
    byId("start").value = start.toFixed(2);
    byId("end").value = end.toFixed(2);
  });
  wave.letMark(way() === "span");
}

byId("recording").addEventListener("change", ({ target }) => {
  if (target.files.length) doing(byId("separate"), () => take(target.files[0]));
});
for (const type of ["dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(type, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) doing(byId("separate"), () => take(event.dataTransfer.files[0]));
  });
}

byId("listen").addEventListener("click", ({ target }) =>
  doing(target, async () => {
    const state = byId("detection-state");
    byId("detection").hidden = false;
    byId("timeline").replaceChildren();
    state.textContent = "Listening …";
    try {
      const found = await follow(await ask("/v1/detections", { json: { audio_id: mixture.id } }), () => {});
      if (found.status !== "succeeded") throw new Refused(200, found.status, found.error?.detail || `It was ${found.status}.`);
      const rows = showTimeline(byId("timeline"), found, (label) => choose("label", label));
      state.textContent = rows ? "Press a name to ask for that sound." : "Nothing was recognised.";
    } catch (error) {
      state.textContent = "";
      throw error;
    }
  }),
);

// The sound

function choose(chosen, label = null) {
  document.querySelector(`input[name=way][value=${chosen}]`).checked = true;
  for (const box of document.querySelectorAll("[data-way]")) box.hidden = box.dataset.way !== chosen;
  wave?.letMark(chosen === "span");
  if (label !== null) byId("label").value = label;
}

for (const radio of document.querySelectorAll("input[name=way]")) {
  radio.addEventListener("change", () => choose(radio.value));
}
for (const id of ["start", "end"]) {
  byId(id).addEventListener("change", () => {
    const [start, end] = [byId("start").valueAsNumber, byId("end").valueAsNumber];
    if (end > start) wave?.show(start, end);
  });
}

let pause = 0;
let searching = null;
byId("label").addEventListener("input", ({ target }) => {
  clearTimeout(pause);
  searching?.abort();
  const text = target.value.trim();
  if (text) pause = setTimeout(() => search(text), SEARCH_PAUSE);
});

async function search(text) {
  searching = new AbortController();
  try {
    const { data } = await ask(`/v1/labels?q=${encodeURIComponent(text)}`, { signal: searching.signal });
    const names = data.filter((found) => found.askable).map((found) => found.label);
    byId("labels").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    byId("label-state").textContent = names.length ? `For example: ${names.slice(0, 5).join("; ")}` : "No such name is known.";
  } catch (error) {
    if (error.name !== "AbortError") fault(error);
  }
}

/** What is wanted, as the request says it; throws with a sentence where something is missing. */
async function target() {
  if (way() === "label") {
    const label = byId("label").value.trim();
    if (!label) throw new Refused(0, "missing", "Say the sound's name.");
    return { label };
  }
  if (way() === "span") {
    const [start, end] = [byId("start").valueAsNumber, byId("end").valueAsNumber];
    if (!(end > start)) throw new Refused(0, "missing", "Mark where the sound is alone: drag over the waveform.");
    return { name: "sound", spans: [{ start, end }] };
  }
  const files = [...byId("examples").files];
  if (!files.length) throw new Refused(0, "missing", "Choose an example of the sound.");
  const examples = [];
  for (const file of files) examples.push({ audio_id: (await upload(file)).id });
  return { name: "sound", examples };
}

// The result

function show(now) {
  job = now;
  const words = {
    queued: now.queue.position > 1 ? `Waiting; ${now.queue.position - 1} before it.` : "Waiting for a worker.",
    running: now.cancel_requested_at ? "Stopping …" : `At work: ${now.progress.stage}.`,
    succeeded: "Done.",
    failed: `It failed: ${now.error?.detail}`,
    canceled: "Canceled.",
  };
  byId("job-state").textContent = words[now.status];
  byId("progress").value = now.progress.ratio;
  byId("progress").hidden = now.status === "failed" || now.status === "canceled";
  byId("cancel").hidden = now.finished_at !== null;
  byId("warnings").replaceChildren(...now.warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(byId("separate"), async () => {
    if (!mixture) throw new Refused(0, "missing", "Choose a recording first.");
    const targets = [await target()];
    byId("stems").replaceChildren();
    byId("archive").hidden = true;
    show(await ask("/v1/separations", { json: { mixture: { audio_id: mixture.id }, targets } }));
    byId("job").hidden = false;
    byId("job").scrollIntoView({ block: "nearest" });
    const done = await follow(job, show);
    if (done.status !== "succeeded") return;
    showStems(byId("stems"), done);
    byId("archive").href = done.archive_url;
    byId("archive").hidden = false;
  });
});

byId("cancel").addEventListener("click", ({ target }) =>
  doing(target, () => ask(`/v1/separations/${job.id}/cancel`, { method: "POST" })),
);

// The key

byId("key").value = sessionStorage.getItem(KEPT) || "";
useKey(byId("key").value);
byId("key").addEventListener("input", ({ target }) => {
  sessionStorage.setItem(KEPT, target.value);
  useKey(target.value);
});
choose(way());
