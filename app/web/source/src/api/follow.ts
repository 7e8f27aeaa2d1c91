// Jobs from their creation to their end, by server-sent events, or by long polls where those do not pass.

import { request } from "./client";
import type { Job, Status } from "./types";

const FINISHED: ReadonlySet<Status> = new Set(["succeeded", "failed", "canceled"]);
const POLL_PAUSE = 500; // ms between polls: the service may answer a long poll sooner than requested

/** Whether a job is in a state that does not change any more. */
export function isFinished({ status }: Pick<Job, "status">): boolean {
  return FINISHED.has(status);
}

/** Calls `onChange` with each change of a job and returns the finished job. Throws ApiError, and AbortError. */
export async function follow<Kind extends Job>(
  job: Kind,
  onChange: (job: Kind) => void,
  signal: AbortSignal,
): Promise<Kind> {
  let latest = job;
  const keep = (changed: Kind): void => {
    latest = changed;
    onChange(changed);
  };
  if (!isFinished(latest)) await listen(latest, keep, signal);
  while (!isFinished(latest)) {
    await pause(POLL_PAUSE, signal);
    keep(await request<Kind>(withoutToken(latest.url), { headers: { Prefer: "wait=20" }, signal }));
  }
  return latest;
}

/** Resolves when the job has finished, or when its events cannot be read. */
function listen<Kind extends Job>(job: Kind, onChange: (job: Kind) => void, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const source = new EventSource(job.events_url);
    const close = (): void => source.close();
    const receive = (event: MessageEvent<string>): void => {
      const changed = JSON.parse(event.data) as Kind;
      onChange(changed);
      if (isFinished(changed)) {
        close();
        resolve();
      }
    };
    for (const type of ["state", "progress", "target"]) source.addEventListener(type, receive);
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) resolve(); // otherwise the browser reconnects
    };
    signal.addEventListener("abort", () => {
      close();
      reject(new DOMException("The job is not followed any more.", "AbortError"));
    });
  });
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Aborted.", "AbortError"));
    });
  });
}

function withoutToken(url: string): string {
  return url.split("?")[0] ?? url; // the request carries the key itself
}
