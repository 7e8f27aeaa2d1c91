// Client of the REST API: JSON requests with the tab's API key, uploads with progress, errors as sentences.

import { signal } from "@preact/signals";

const KEY_ITEM = "earmark-key"; // in sessionStorage: kept for the tab

/** The API key that requests carry; empty: none. */
export const apiKey = signal(sessionStorage.getItem(KEY_ITEM) ?? "");

/** Whether the service refused a request for want of a valid key; `null` while it accepts. */
export const keyRefused = signal<string | null>(null);

/** Sets the key for this tab. */
export function setApiKey(key: string): void {
  apiKey.value = key.trim();
  keyRefused.value = null;
  if (apiKey.value) sessionStorage.setItem(KEY_ITEM, apiKey.value);
  else sessionStorage.removeItem(KEY_ITEM);
}

/** One field of a request that the service did not accept, by JSON pointer. */
export interface FieldError {
  pointer: string;
  detail: string;
}

/** A failed request; the message is a sentence for the user. `status` 0: there was no response. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly errors: FieldError[] = [],
    readonly retryAfter: number | null = null,
  ) {
    super(detail);
  }
}

const UNREACHABLE = "The service does not answer. Is it running, and are you online?";

interface RequestOptions {
  method?: string;
  json?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** Sends a request and returns the response's JSON, or null for one without content. Throws ApiError. */
export async function request<Answer>(path: string, options: RequestOptions = {}): Promise<Answer> {
  const headers = new Headers(options.headers);
  const init: RequestInit = { method: options.method ?? "GET", headers };
  if (options.signal) init.signal = options.signal;
  if (apiKey.value) headers.set("Authorization", `Bearer ${apiKey.value}`);
  if (options.json !== undefined) {
    init.method = options.method ?? "POST";
    init.body = JSON.stringify(options.json);
    headers.set("Content-Type", "application/json");
    headers.set("Idempotency-Key", randomKey());
  }
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError(0, "unreachable", UNREACHABLE);
  }
  if (response.ok) return (response.status === 204 ? null : await response.json()) as Answer;
  throw refusal(response.status, await response.text(), response.headers.get("Retry-After"));
}

/** Uploads a file as the form field `file`; `onProgress` gets the part that is sent, 0 to 1. Throws ApiError. */
export function upload<Answer>(
  file: Blob,
  name: string,
  onProgress: (ratio: number) => void,
  signal: AbortSignal,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file, name);
    const sending = new XMLHttpRequest(); // fetch does not tell how much was sent
    sending.open("POST", "/v1/audio");
    if (apiKey.value) sending.setRequestHeader("Authorization", `Bearer ${apiKey.value}`);
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText) as Answer);
      else reject(refusal(sending.status, sending.responseText, sending.getResponseHeader("Retry-After")));
    };
    sending.onerror = () => reject(new ApiError(0, "unreachable", UNREACHABLE));
    sending.onabort = () => reject(new DOMException("The upload was aborted.", "AbortError"));
    signal.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}

/** Whether an error says that the caller itself aborted the request. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Returns a path with query parameters added to those that it has, such as a token. */
export function withParameters(path: string, parameters: Record<string, string | number>): string {
  const [base = "", query = ""] = path.split("?");
  const all = new URLSearchParams(query);
  for (const [name, value] of Object.entries(parameters)) all.set(name, String(value));
  return `${base}?${all}`;
}

function refusal(status: number, body: string, retryAfter: string | null): ApiError {
  let problem: { code?: string; detail?: string; errors?: FieldError[] } = {};
  try {
    problem = JSON.parse(body) as typeof problem;
  } catch {
    // a proxy's error page
  }
  const seconds = retryAfter === null ? null : Number(retryAfter);
  const detail = problem.detail ?? `The service answered ${status}.`;
  if (status === 401) keyRefused.value = apiKey.value ? detail : "";
  return new ApiError(status, problem.code ?? `http_${status}`, detail, problem.errors ?? [], seconds);
}

function randomKey(): string {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("");
}
