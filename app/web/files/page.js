// The page: builds a separation request from the form and shows the job's progress and result.

import { addParameters, ApiError, followJob, request, setApiKey, uploadAudio } from "./api.js";
import { showStems, showTimeline } from "./results.js";
import { MixtureWaveform } from "./waveform.js";

const WAVEFORM_POINTS = 2000; // about the width of a screen in pixels
const SEARCH_DELAY = 250; // ms after the last keystroke
const KEY_ITEM = "earmark-key"; // in sessionStorage

const byId = (id) => document.getElementById(id);
const createTextElements = (name, texts) =>
  texts.map((textContent) => Object.assign(document.createElement(name), { textContent }));
const selectedMethod = () => document.querySelector("input[name=method]:checked").value;
let currentUpload = null; // AbortController of the latest upload of a recording
let mixture = null; // the uploaded recording
let waveform = null;
let currentJob = null; // the latest separation

function showError(error) {
  byId("error").hidden = false;
  byId("error").textContent = error instanceof ApiError ? error.message : `Something went wrong: ${error.message}`;
  if (error instanceof ApiError && error.status === 401) {
    byId("key-box").open = true;
    byId("key").focus();
  }
}

const actionCounts = new Map(); // by button: its running actions

/** Runs a user's action and shows its error; the buttons are disabled until all of their actions have ended. */
async function runAction(buttons, action) {
  byId("error").hidden = true;
  for (const button of buttons) {
    actionCounts.set(button, (actionCounts.get(button) || 0) + 1);
    button.disabled = true;
  }
  try {
    await action();
  } catch (error) {
    showError(error);
  } finally {
    for (const button of buttons) {
      actionCounts.set(button, actionCounts.get(button) - 1);
      button.disabled = actionCounts.get(button) > 0;
    }
  }
}

// The recording

function selectRecording(file) {
  runAction([byId("separate"), byId("detect")], () => uploadMixture(file));
}

async function uploadMixture(file) {
  const state = byId("recording-state");
  currentUpload?.abort(); // only the recording chosen last is used
  const upload = (currentUpload = new AbortController());
  mixture = null;
  waveform?.destroy();
  waveform = null;
  byId("mixture-audio").removeAttribute("src");
  byId("mixture").hidden = false; // not after the upload: it would move controls that the user may be pressing
  byId("detection").hidden = true;
  state.textContent = `Uploading ${file.name} …`;
  try {
    mixture = await uploadAudio(file, upload.signal);
  } catch (error) {
    if (upload !== currentUpload) return;
    state.textContent = "";
    byId("mixture").hidden = true;
    throw error;
  }
  state.textContent = describeRecording(mixture, file.name);
  drawMixture(mixture).catch(showError); // not awaited: the form can be used meanwhile
}

function describeRecording({ filename, codec, sample_rate, channels, duration }, name) {
  const length = duration === null ? "" : `, ${duration.toFixed(1)} s`;
  return `${filename || name}: ${codec}, ${sample_rate} Hz, ${channels} ch${length}`;
}

async function drawMixture(audio) {
  const url = addParameters(audio.url, { redirect: 0 });
  byId("mixture-audio").src = url;
  const { channels, duration } = await request(`/v1/audio/${audio.id}/peaks?points=${WAVEFORM_POINTS}`);
  if (audio !== mixture) return; // another recording was chosen
  const [{ minimum, maximum }] = channels;
  const peaks = [minimum.flatMap((low, index) => [maximum[index], low])];
  waveform = new MixtureWaveform(byId("mixture-wave"), byId("mixture-audio"), peaks, duration, url, (start, end) => {
    byId("start").value = start.toFixed(2);
    byId("end").value = end.toFixed(2);
  });
  waveform.setMarking(selectedMethod() === "span");
}

byId("recording").addEventListener("change", ({ target }) => {
  if (target.files.length) selectRecording(target.files[0]);
});
for (const type of ["dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(type, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) selectRecording(event.dataTransfer.files[0]);
  });
}

byId("detect").addEventListener("click", ({ target }) =>
  runAction([target], async () => {
    const state = byId("detection-state");
    byId("detection").hidden = false;
    byId("timeline").replaceChildren();
    state.textContent = "Listening …";
    try {
      const job = await followJob(await request("/v1/detections", { json: { audio_id: mixture.id } }), () => {});
      if (job.status !== "succeeded") {
        throw new ApiError(200, job.status, job.error?.detail || `The detection was ${job.status}.`);
      }
      const rows = showTimeline(byId("timeline"), job, (label) => selectMethod("label", label));
      state.textContent = rows ? "Press a name to select that sound." : "No sound was recognised.";
    } catch (error) {
      state.textContent = "";
      throw error;
    }
  }),
);

// The sound

function selectMethod(method, label = null) {
  document.querySelector(`input[name=method][value=${method}]`).checked = true;
  for (const box of document.querySelectorAll("[data-method]")) box.hidden = box.dataset.method !== method;
  waveform?.setMarking(method === "span");
  if (label !== null) byId("label").value = label;
}

for (const radio of document.querySelectorAll("input[name=method]")) {
  radio.addEventListener("change", () => selectMethod(radio.value));
}
for (const id of ["start", "end"]) {
  byId(id).addEventListener("change", () => {
    const [start, end] = [byId("start").valueAsNumber, byId("end").valueAsNumber];
    if (end > start) waveform?.showSpan(start, end);
  });
}

let searchTimer = 0;
let currentSearch = null; // AbortController
byId("label").addEventListener("input", ({ target }) => {
  clearTimeout(searchTimer);
  currentSearch?.abort();
  const text = target.value.trim();
  if (text) searchTimer = setTimeout(() => searchLabels(text), SEARCH_DELAY);
});

async function searchLabels(text) {
  currentSearch = new AbortController();
  try {
    const { data } = await request(`/v1/labels?q=${encodeURIComponent(text)}`, { signal: currentSearch.signal });
    const names = data.filter((entry) => entry.askable).map((entry) => entry.label);
    byId("labels").replaceChildren(...createTextElements("option", names));
    const examples = names.slice(0, 5).join("; ");
    byId("label-state").textContent = examples ? `For example: ${examples}` : "No sound has this name.";
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

/** Returns the request's target and uploads its examples; throws ApiError where input is missing. */
async function buildTarget() {
  if (selectedMethod() === "label") {
    const text = byId("label").value.trim();
    if (!text) throw new ApiError(0, "missing", "Enter the sound's name.");
    return { text };
  }
  if (selectedMethod() === "span") {
    const [start, end] = [byId("start").valueAsNumber, byId("end").valueAsNumber];
    if (!(end > start)) throw new ApiError(0, "missing", "Mark where the sound is alone: drag over the waveform.");
    return { name: "sound", spans: [{ start, end }] };
  }
  const files = [...byId("examples").files];
  if (!files.length) throw new ApiError(0, "missing", "Choose an example of the sound.");
  const examples = [];
  for (const file of files) examples.push({ audio_id: (await uploadAudio(file)).id });
  return { name: "sound", examples };
}

// The result

function showJob(job) {
  currentJob = job;
  const states = {
    queued: job.queue.position > 1 ? `Waiting; jobs ahead: ${job.queue.position - 1}.` : "Waiting for a worker.",
    running: job.cancel_requested_at ? "Stopping …" : `At work: ${job.progress.stage}.`,
    succeeded: "Done.",
    failed: `Failed: ${job.error?.detail}`,
    canceled: "Canceled.",
  };
  byId("job-state").textContent = states[job.status];
  byId("progress").value = job.progress.ratio;
  byId("progress").hidden = job.status === "failed" || job.status === "canceled";
  byId("cancel").hidden = job.finished_at !== null;
  byId("warnings").replaceChildren(...createTextElements("li", job.warnings));
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  runAction([byId("separate")], async () => {
    if (!mixture) throw new ApiError(0, "missing", "Choose a recording first.");
    const targets = [await buildTarget()];
    byId("stems").replaceChildren();
    byId("archive").hidden = true;
    showJob(await request("/v1/separations", { json: { mixture: { audio_id: mixture.id }, targets } }));
    byId("job").hidden = false;
    byId("job").scrollIntoView({ block: "nearest" });
    const job = await followJob(currentJob, showJob);
    if (job.status !== "succeeded") return;
    showStems(byId("stems"), job);
    byId("archive").href = job.archive_url;
    byId("archive").hidden = false;
  });
});

byId("cancel").addEventListener("click", ({ target }) =>
  runAction([target], () => request(`/v1/separations/${currentJob.id}/cancel`, { method: "POST" })),
);

// The API key

byId("key").value = sessionStorage.getItem(KEY_ITEM) || "";
setApiKey(byId("key").value);
byId("key").addEventListener("input", ({ target }) => {
  sessionStorage.setItem(KEY_ITEM, target.value);
  setApiKey(target.value);
});
selectMethod(selectedMethod());
