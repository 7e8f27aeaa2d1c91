// What was just done, as calls of the API; and what came back.

import { useSignal } from "@preact/signals";
import { apiKey } from "../api/client";
import { snippet, type Language } from "../request/snippets";
import { findEntry } from "../state/history";
import { recording } from "../state/recording";
import { draft, sentRequest, separation } from "../state/separation";
import { targets } from "../state/targets";
import { Drawer } from "./Drawer";
import { Icon } from "./icons";

type Tab = Language | "answer";

const TABS: [Tab, string][] = [
  ["curl", "curl"],
  ["python", "Python"],
  ["javascript", "JavaScript"],
  ["answer", "Answer"],
];

export function RequestDrawer() {
  const tab = useSignal<Tab>("curl");
  const content = text(tab.value);
  return (
    <Drawer title="As a request">
      <div class="line">
        <Tabs shown={tab.value} onChoose={(chosen) => (tab.value = chosen)} />
        <span class="spring" />
        {content && <Copy text={content} />}
      </div>
      <pre id="request-text" role="tabpanel" aria-labelledby={`tab-${tab.value}`} tabIndex={0}>
        {content ?? "Open a recording and say what you want: the call appears here."}
      </pre>
      <p class="quiet">
        {tab.value === "answer"
          ? "The job as the service returned it last."
          : "A whole program: it uploads, separates, waits and downloads."}{" "}
        <a href="/docs">All of the API</a>
      </p>
    </Drawer>
  );
}

function Tabs({ shown, onChoose }: { shown: Tab; onChoose: (tab: Tab) => void }) {
  const move = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const at = TABS.findIndex(([id]) => id === shown);
    const next = TABS[(at + step + TABS.length) % TABS.length]?.[0] ?? shown;
    onChoose(next);
    document.getElementById(`tab-${next}`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label="Language" onKeyDown={move}>
      {TABS.map(([id, name]) => (
        <button
          key={id}
          id={`tab-${id}`}
          type="button"
          role="tab"
          aria-selected={shown === id}
          aria-controls="request-text"
          tabIndex={shown === id ? 0 : -1}
          onClick={() => onChoose(id)}
        >
          {name}
        </button>
      ))}
    </div>
  );
}

function Copy({ text: content }: { text: string }) {
  const copied = useSignal(false);
  const copy = async (): Promise<void> => {
    await navigator.clipboard.writeText(content);
    copied.value = true;
    setTimeout(() => (copied.value = false), 2000);
  };
  return (
    <button type="button" onClick={() => void copy()}>
      {copied.value ? (
        <>
          <Icon name="check" /> Copied
        </>
      ) : (
        "Copy"
      )}
    </button>
  );
}

function text(tab: Tab): string | null {
  const job = separation.value;
  if (tab === "answer") return job && JSON.stringify(job, null, 2);
  const request = sentRequest.value ?? draft.value;
  const origin = (job && findEntry(job.id)?.origin) ?? recording.value?.origin;
  if (!request || !origin || (!request.targets?.length && !request.auto)) return null;
  const call = {
    server: location.origin,
    hasKey: apiKey.value !== "",
    origin,
    request,
    files: names(),
  };
  return snippet(call, tab);
}

function names(): Map<string, string> {
  const job = separation.value;
  const known = new Map(job ? findEntry(job.id)?.files : []);
  for (const { query, not } of targets.value) {
    for (const part of [query, not]) {
      if (part?.kind !== "examples") continue;
      for (const { name, audioId } of part.examples) if (audioId) known.set(audioId, name);
    }
  }
  return known;
}
