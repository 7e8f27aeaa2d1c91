// The page: header, message, start or studio, drawers.

import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { keyRefused } from "../api/client";
import { stopListening } from "../state/detection";
import { notice } from "../state/notice";
import { close, isOpen, openFile, recording, uploading } from "../state/recording";
import { reset, separation } from "../state/separation";
import { addExamples, clear } from "../state/targets";
import { Drawer, openDrawer } from "./Drawer";
import { HistoryDrawer } from "./HistoryDrawer";
import { Icon } from "./icons";
import { KEYS } from "./keyboard";
import { KeyForm } from "./KeyForm";
import { RequestDrawer } from "./RequestDrawer";
import { RunPanel } from "./RunPanel";
import { Start } from "./Start";
import { Targets } from "./Targets";
import { Timeline } from "./Timeline";
import { TrackField } from "./TrackField";
import { Selection, Transport } from "./Transport";

const dragged = signal(false);

export function App() {
  useEffect(listenToDrops, []);
  const isStudio = isOpen.value || separation.value !== null;
  return (
    <>
      <header class="top">
        <h1>Earmark</h1>
        <span class="spring" />
        <nav aria-label="Page">
          {isStudio && (
            <button type="button" aria-label="New recording" onClick={startAgain}>
              <Icon name="plus" /> <span class="wide">New recording</span>
            </button>
          )}
          <button type="button" aria-label="History" onClick={() => (openDrawer.value = "history")}>
            <Icon name="history" /> <span class="wide">History</span>
          </button>
          <button type="button" aria-label="As a request" onClick={() => (openDrawer.value = "request")}>
            <Icon name="code" /> <span class="wide">As a request</span>
          </button>
          <a class="button" href="/docs">
            API
          </a>
        </nav>
      </header>
      <main>
        <Message />
        <KeyForm />
        {isStudio ? <Studio /> : <Start />}
      </main>
      {dragged.value && <DropHint />}
      {openDrawer.value === "request" && <RequestDrawer />}
      {openDrawer.value === "history" && <HistoryDrawer />}
      {openDrawer.value === "keys" && <KeyHelp />}
    </>
  );
}

function Studio() {
  const busy = uploading.value;
  const job = separation.value;
  const name = recording.value ? title() : (busy?.name ?? (job ? "A recording that is gone; its stems are here" : ""));
  return (
    <div class="studio" id="studio">
      <div class="stage">
        <div class="bar title">
          <h2 class="clip">{name}</h2>
          <span class="spring" />
          <button type="button" class="link for-keys" onClick={() => (openDrawer.value = "keys")}>
            Keys
          </button>
        </div>
        {busy ? (
          <Uploading name={busy.name} ratio={busy.ratio} />
        ) : (
          <>
            <TrackField />
            <Transport />
            <Selection />
            <Timeline />
          </>
        )}
      </div>
      <div class="side">
        <Targets />
        <RunPanel />
      </div>
    </div>
  );
}

function title(): string {
  const opened = recording.value;
  if (!opened) return "";
  return opened.origin.kind === "file" ? opened.origin.name : (opened.audio.filename ?? opened.origin.url);
}

function Uploading({ name, ratio }: { name: string; ratio: number | null }) {
  const text = ratio === null ? "Fetching" : ratio < 1 ? `Uploading, ${Math.round(100 * ratio)} %` : "Checking";
  return (
    <div class="uploading" role="status">
      <p>
        {text} {name} …
      </p>
      <progress max={1} {...(ratio === null || ratio === 1 ? {} : { value: ratio })} aria-label="Upload" />
      <button type="button" onClick={close}>
        Cancel
      </button>
    </div>
  );
}

function Message() {
  const shown = notice.value;
  return (
    <div role="alert" class={shown ? "notice" : "no-notice"}>
      {shown && (
        <>
          <p>
            {shown.text} {shown.code && <code>{shown.code}</code>}
          </p>
          <span class="spring" />
          {shown.again && keyRefused.value === null && (
            <button type="button" onClick={repeat}>
              Try again
            </button>
          )}
          <button
            type="button"
            class="icon-button"
            aria-label="Close the message"
            onClick={() => (notice.value = null)}
          >
            <Icon name="close" />
          </button>
        </>
      )}
    </div>
  );
}

function repeat(): void {
  const again = notice.value?.again;
  notice.value = null;
  again?.();
}

function startAgain(): void {
  close();
  reset();
  stopListening();
  clear();
}

function KeyHelp() {
  return (
    <Drawer title="Keys">
      <dl class="keys">
        {KEYS.map(([key, what]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p class="quiet">Ctrl or Cmd with the wheel zooms, Shift with the wheel scrolls, two fingers do both.</p>
    </Drawer>
  );
}

function DropHint() {
  return (
    <div class="drop-hint" aria-hidden="true">
      <p>
        {recording.value
          ? "Drop it on the list for an example, anywhere else for a new recording"
          : "Drop the recording"}
      </p>
    </div>
  );
}

/** A file that is dropped on the list of targets is an example, anywhere else a recording. */
function listenToDrops(): () => void {
  const over = (event: DragEvent): void => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    dragged.value = true;
  };
  const leave = (event: DragEvent): void => {
    if (event.relatedTarget === null) dragged.value = false;
  };
  const drop = (event: DragEvent): void => {
    event.preventDefault();
    dragged.value = false;
    const files = [...(event.dataTransfer?.files ?? [])].map((file) => ({ blob: file, name: file.name }));
    const [first] = files;
    const isExample = recording.value !== null && (event.target as Element).closest("[data-drop=example]");
    if (isExample) void addExamples(files);
    else if (first) void openFile(first.blob, first.name);
  };
  const abort = new AbortController();
  const { signal: until } = abort;
  window.addEventListener("dragover", over, { signal: until });
  window.addEventListener("dragleave", leave, { signal: until });
  window.addEventListener("drop", drop, { signal: until });
  return () => abort.abort();
}
