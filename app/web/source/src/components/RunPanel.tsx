// Options, the button that starts, and how the job is doing.

import { batch } from "@preact/signals";
import type { Format, Separation } from "../api/types";
import { apiKey } from "../api/client";
import { playbackFailure, playing, togglePlay } from "../playback/transport";
import { FORMATS } from "../request/output";
import { chosenModel, modelId, models } from "../state/models";
import { options, setOptions, setOutput } from "../state/options";
import { blocked, cancel, isRunning, retry, run, sending, separation } from "../state/separation";
import { Icon } from "./icons";

const STAGES: Record<string, string> = {
  queued: "Waiting for a worker",
  decoding: "Decoding",
  detecting: "Listening to the recording",
  separating: "Separating",
  encoding: "Writing the stems",
  storing: "Storing the stems",
};

export function RunPanel() {
  const job = separation.value;
  return (
    <section class="panel run" aria-label="Separate">
      <button
        type="button"
        class="primary large"
        disabled={blocked.value !== null || isRunning.value}
        aria-describedby="run-state"
        onClick={() => void run()}
      >
        {isRunning.value ? "Separating …" : "Separate"}
      </button>
      <div class="run-state" id="run-state" role="status">
        {job && <JobState job={job} />}
        {job?.warnings.map((warning) => (
          <p key={warning} class="advice">
            {warning}
          </p>
        ))}
        {(!job || (blocked.value && !isRunning.value)) && <span class="quiet">{blocked.value ?? "Ready."}</span>}
      </div>
      <Options />
    </section>
  );
}

function JobState({ job }: { job: Separation }) {
  switch (job.status) {
    case "queued":
    case "running":
      return <Running job={job} />;
    case "succeeded":
      return (
        <div class="line">
          <span>Done in {seconds(job)}.</span>
          <span class="spring" />
          <button type="button" disabled={playbackFailure.value !== null} onClick={hear}>
            <Icon name={playing.value ? "pause" : "play"} /> {playing.value ? "Pause it" : "Hear it"}
          </button>
        </div>
      );
    case "canceled":
      return (
        <div class="line">
          <span>Canceled.</span>
          <span class="spring" />
          <Retry />
        </div>
      );
    case "failed":
      return (
        <>
          <p class="wrong" role="alert">
            {job.error?.detail} <code>{job.error?.code}</code>
          </p>
          <Retry />
        </>
      );
  }
}

function hear(): void {
  if (!playing.value) document.querySelector(".stem")?.scrollIntoView({ block: "nearest" });
  void togglePlay();
}

function Retry() {
  return (
    <button type="button" disabled={sending.value} onClick={() => void retry()}>
      Try again
    </button>
  );
}

function Running({ job }: { job: Separation }) {
  const stage = STAGES[job.progress.stage] ?? job.progress.stage;
  const place = job.queue.position > 0 ? `, place ${job.queue.position} in the queue` : "";
  const isStopping = job.cancel_requested_at !== null;
  return (
    <>
      <div class="line">
        <span>{isStopping ? "Stopping …" : `${stage}${place}`}</span>
        <span class="spring" />
        <button type="button" disabled={isStopping} onClick={() => void cancel()}>
          Cancel
        </button>
      </div>
      <progress max={1} value={job.progress.ratio} aria-label="Progress" />
    </>
  );
}

function seconds({ started_at, finished_at }: Separation): string {
  const elapsed = Date.parse(finished_at ?? "") - Date.parse(started_at ?? "");
  return `${(elapsed / 1000).toFixed(1)} s`;
}

function Options() {
  const { output, listens, webhook } = options.value;
  const depths = FORMATS[output.format]?.bitDepths; // a page of another release may have stored another format
  const setFormat = (format: Format): void => {
    batch(() => {
      const { bit_depth: _, ...rest } = output;
      setOptions({ output: { ...rest, format } });
    });
  };
  return (
    <details class="options-box">
      <summary>Options</summary>
      <div class="option-grid">
        <label>
          Format
          <select value={output.format} onChange={(event) => setFormat(event.currentTarget.value as Format)}>
            {Object.entries(FORMATS).map(([value, { name }]) => (
              <option key={value} value={value}>
                {name}
              </option>
            ))}
          </select>
        </label>
        {depths && (
          <label>
            Bits per sample
            <select
              value={output.bit_depth ?? depths[0]}
              onChange={(event) => setOutput({ bit_depth: Number(event.currentTarget.value) })}
            >
              {depths.map((depth) => (
                <option key={depth} value={depth}>
                  {depth === 32 ? "32, floating" : depth}
                </option>
              ))}
            </select>
          </label>
        )}
        <Check
          label="High quality: slower, and counts for more"
          checked={output.quality === "high"}
          onChange={(high) => setOutput({ quality: high ? "high" : "standard" })}
        />
        <Check
          label="Everything else as a stem of its own"
          checked={output.residual}
          onChange={(residual) => setOutput({ residual })}
        />
        <Check
          label="Soften a stem that is probably absent"
          checked={output.gate}
          onChange={(gate) => setOutput({ gate })}
        />
        <Check label="Refine all targets together" checked={output.joint} onChange={(joint) => setOutput({ joint })} />
        <Check
          label={`Listen by itself after an upload${apiKey.value ? " (counts for the quota)" : ""}`}
          checked={listens}
          onChange={(changed) => setOptions({ listens: changed })}
        />
        <ModelField />
        <label>
          Webhook
          <input
            type="url"
            placeholder="https://…"
            title="Address that is told when the separation is over"
            value={webhook}
            onInput={(event) => setOptions({ webhook: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  );
}

function ModelField() {
  const offered = models.value ?? [];
  if (offered.length < 2) return null;
  return (
    <label>
      Model
      <select
        value={chosenModel.value ?? ""}
        onChange={(event) => setOptions({ model: event.currentTarget.value || null })}
      >
        {offered.map((model) => (
          <option key={modelId(model)} value={model.default ? "" : modelId(model)}>
            {modelId(model)}
            {model.default && " (default)"}
          </option>
        ))}
      </select>
    </label>
  );
}

function Check(props: { label: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return (
    <label class="check">
      <input
        type="checkbox"
        checked={props.checked}
        onChange={(event) => props.onChange(event.currentTarget.checked)}
      />
      {props.label}
    </label>
  );
}
