// The REST service as the page uses it: JSON in and out, errors as sentences, a job's events until it is over.

const OVER = new Set(["succeeded", "failed", "canceled"]);
const PAUSE = 500; // ms between polls: the service may not hold them back as long as is asked for
let key = "";

/** The API key that requests carry from now on; empty for none. */
export function useKey(written) {
  key = written.trim();
}

/** What the service refused, in words that people may read. */
export class Refused extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** An answer's JSON; throws Refused. */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  if (options.json !== undefined) {
    options = { ...options, method: "POST", body: JSON.stringify(options.json) };
    headers.set("Content-Type", "application/json");
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable", "The service does not answer. Is it running, and are you online?");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, problem.code, inWords(answer.status, problem));
}

function inWords(status, problem) {
  if (status === 401) return "The service asks for an API key. Type yours under “API key”.";
  const lines = [problem.detail || `The service answered ${status}.`];
  for (const fault of problem.errors || []) {
    if (fault.detail !== problem.detail) lines.push(fault.detail);
  }
  return lines.join("\n");
}

/** Stores a file, unless `signal` breaks that off; the upload's record. */
export function upload(file, signal) {
  const form = new FormData();
  form.append("file", file, file.name);
  return ask("/v1/audio", { method: "POST", body: form, signal });
}

/** Calls `told` with the job each time that it changes; the job once it is over. Throws Refused. */
export function follow(job, told) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(job.events_url);
    const heard = (event) => {
      job = JSON.parse(event.data);
      told(job);
      if (OVER.has(job.status)) {
        source.close();
        resolve(job);
      }
    };
    for (const type of ["state", "progress", "target"]) source.addEventListener(type, heard);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
      poll(job, told).then(resolve, reject);
    };
  });
}

/** The same without events, where something between here and there does not let them through. */
async function poll(job, told) {
  while (!OVER.has(job.status)) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    job = await ask(job.url, { headers: { Prefer: "wait=20" } });
    told(job);
  }
  return job;
}

/** An address with further parameters. */
export function withParameters(url, parameters) {
  const address = new URL(url, location.href);
  for (const [name, value] of Object.entries(parameters)) address.searchParams.set(name, value);
  return address.href;
}
