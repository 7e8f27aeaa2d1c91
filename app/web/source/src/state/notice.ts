// The one message above the studio: an error in plain words with its code, or a hint, and what can be done about it.

import { signal } from "@preact/signals";
import { ApiError, isAbort } from "../api/client";
import { length } from "../timeline/ticks";

export interface Notice {
  text: string;
  code: string | null;
  again: (() => void) | null;
}

export const notice = signal<Notice | null>(null);

/** Shows an error; `again` repeats what failed. A request that the page itself aborted is none. */
export function report(error: unknown, again: (() => void) | null = null): void {
  if (isAbort(error)) return;
  notice.value = { ...explain(error), again };
}

/** An error's sentence and code. */
export function explain(error: unknown): { text: string; code: string | null } {
  if (!(error instanceof ApiError)) {
    return { text: error instanceof Error ? error.message : String(error), code: null };
  }
  const lines = [error.message, ...error.errors.map(({ detail }) => detail)];
  const wait = error.retryAfter === null ? "" : ` Try again in ${length(error.retryAfter)}.`;
  return { text: [...new Set(lines)].join(" ") + wait + hint(error), code: error.code };
}

function hint({ status, code }: ApiError): string {
  if (status === 401) return " Enter your key above.";
  if (code === "rate_limited") return " The key has used its share of requests for now.";
  if (code === "quota_exceeded") return " The key has used its seconds of audio for today; detection counts too.";
  if (code === "queue_full") return " Too many jobs are waiting.";
  return "";
}
