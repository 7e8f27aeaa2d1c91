// Client of the REST API: JSON requests, errors as sentences, a job's events until it has finished.

const FINISHED = new Set(["succeeded", "failed", "canceled"]);
const POLL_PAUSE = 500; // ms between polls: the service may answer a long poll sooner than requested
let apiKey = "";

/** Sets the API key that requests carry; an empty one sends none. */
export function setApiKey(key) {
  apiKey = key.trim();
}

/** A failed request, or invalid input; the message is for the user. */
export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** Sends a request and returns the response's JSON; throws ApiError. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey) headers.set("Authorization", `Bearer ${apiKey}`);
  if (options.json !== undefined) {
    options = { ...options, method: "POST", body: JSON.stringify(options.json) };
    headers.set("Content-Type", "application/json");
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The service does not answer. Is it running, and are you online?");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(response.status, problem.code, describeProblem(response.status, problem));
}

function describeProblem(status, problem) {
  if (status === 401) return "The service requires an API key. Enter yours under “API key”.";
  const lines = [problem.detail || `The service answered ${status}.`];
  for (const fieldError of problem.errors || []) {
    if (fieldError.detail !== problem.detail) lines.push(fieldError.detail);
  }
  return lines.join("\n");
}

/** Uploads a file and returns its record; `signal` aborts the upload. Throws ApiError. */
export function uploadAudio(file, signal) {
  const form = new FormData();
  form.append("file", file, file.name);
  return request("/v1/audio", { method: "POST", body: form, signal });
}

/** Calls `onChange(job)` on each change of the job; returns the finished job. Throws ApiError. */
export function followJob(job, onChange) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(job.events_url);
    const receive = (event) => {
      job = JSON.parse(event.data);
      onChange(job);
      if (FINISHED.has(job.status)) {
        source.close();
        resolve(job);
      }
    };
    for (const type of ["state", "progress", "target"]) source.addEventListener(type, receive);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser reconnects
      pollJob(job, onChange).then(resolve, reject);
    };
  });
}

/** The same by long polling, for networks that block server-sent events. */
async function pollJob(job, onChange) {
  while (!FINISHED.has(job.status)) {
    await new Promise((resolve) => setTimeout(resolve, POLL_PAUSE));
    job = await request(job.url, { headers: { Prefer: "wait=20" } });
    onChange(job);
  }
  return job;
}

/** Returns an absolute URL with query parameters added. */
export function addParameters(url, parameters) {
  const address = new URL(url, location.href);
  for (const [name, value] of Object.entries(parameters)) address.searchParams.set(name, value);
  return address.href;
}
