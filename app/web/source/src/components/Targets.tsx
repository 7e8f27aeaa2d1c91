// What the user wants: the ways to ask, and the list of targets.

import { useSignal } from "@preact/signals";
import { accept, suggestions } from "../state/bundled_examples";
import { canRecord, microphone, recordMicrophone } from "../state/microphone";
import { report } from "../state/notice";
import { options, setOptions } from "../state/options";
import { deleteSavedQuery, loadSavedQueries, savedQueries, saveQuery } from "../state/saved_queries";
import {
  addExamples,
  addNegativeExamples,
  addTarget,
  addWords,
  auto,
  change,
  pending,
  remove,
  removed,
  rename,
  restore,
  targets,
} from "../state/targets";
import type { Example, Negative, Query, Target } from "../state/targets";
import { clock } from "../timeline/ticks";
import { ACCEPT, FileButton } from "./FileButton";
import { Icon } from "./icons";
import { LabelField } from "./LabelField";
import { TrackSelect } from "./TrackField";

export function Targets() {
  return (
    <section class="panel targets" aria-labelledby="targets-title" data-drop="example">
      <h2 id="targets-title">What do you want?</h2>
      <LabelField
        label="Describe a sound"
        placeholder="a dog barking, siren, piano …"
        submit="Add"
        onChoose={addWords}
      />
      <div class="ways" role="group" aria-labelledby="example-title">
        <span class="quiet caption-text" id="example-title">
          Or give an example of it
        </span>
        <FileButton accept={ACCEPT} multiple onFiles={(files) => void addExamples(files)}>
          <Icon name="file" /> File
        </FileButton>
        {canRecord && <RecordExample />}
        <SavedQueries />
      </div>
      <ul class="target-list">
        {targets.value.map((target) => (
          <Chip key={target.id} target={target} />
        ))}
        <Removed />
      </ul>
      <Suggestions />
      <Everything />
    </section>
  );
}

/** The target that is gone, in the list's last place. */
function Removed() {
  if (!removed.value) return null;
  const { name } = removed.value.target;
  return (
    <li class="line removed">
      <span class="quiet clip">Removed {name}.</span>
      <span class="spring" />
      <button type="button" class="link" title="Ctrl or Cmd with Z" onClick={restore}>
        Undo
      </button>
    </li>
  );
}

function Suggestions() {
  if (!suggestions.value.length) return null;
  return (
    <div class="ways" role="group" aria-label="Also in it">
      <span class="quiet caption-text">Also in it</span>
      {suggestions.value.map((one) => (
        <button key={one.title} type="button" class="small" onClick={() => accept(one)}>
          <Icon name="plus" /> {one.title}
        </button>
      ))}
    </div>
  );
}

function RecordExample() {
  const mine = useSignal(false);
  const record = async (): Promise<void> => {
    if (microphone.value) return microphone.value.stop();
    mine.value = true;
    try {
      await addExamples([{ blob: await recordMicrophone(), name: "my example.wav" }]);
    } catch (error) {
      report(error);
    } finally {
      mine.value = false;
    }
  };
  return (
    <button
      type="button"
      aria-pressed={mine.value}
      disabled={microphone.value !== null && !mine.value}
      onClick={() => void record()}
    >
      <Icon name="microphone" /> {mine.value ? `Stop, ${clock(microphone.value?.seconds ?? 0)}` : "Record"}
    </button>
  );
}

function SavedQueries() {
  const open = useSignal(false);
  const toggle = (): void => {
    open.value = !open.value;
    if (open.value) void loadSavedQueries();
  };
  return (
    <>
      <button type="button" aria-expanded={open.value} onClick={toggle}>
        <Icon name="bookmark" /> Saved
      </button>
      {open.value && (
        <ul class="saved" aria-label="Saved sounds">
          {savedQueries.value.map(({ id, name }) => (
            <li key={id} class="line">
              <button type="button" class="link clip" onClick={() => addTarget({ kind: "saved", id, name }, name)}>
                {name}
              </button>
              <button
                type="button"
                class="icon-button"
                aria-label={`Delete ${name}`}
                onClick={() => void deleteSavedQuery(id)}
              >
                <Icon name="close" />
              </button>
            </li>
          ))}
          {!savedQueries.value.length && <li class="quiet">None yet: save an example of a sound to use it again.</li>}
        </ul>
      )}
    </>
  );
}

function Everything() {
  return (
    <div class="line everything">
      <label class="check">
        <input type="checkbox" checked={auto.value} onChange={(event) => (auto.value = event.currentTarget.checked)} />
        Everything that is heard
      </label>
      {auto.value && (
        <label class="field">
          at most
          <input
            type="number"
            min={1}
            max={16}
            value={options.value.maxTargets}
            onChange={({ currentTarget: { valueAsNumber: most } }) => {
              if (most >= 1 && most <= 16) setOptions({ maxTargets: Math.round(most) });
            }}
          />
        </label>
      )}
    </div>
  );
}

function Chip({ target }: { target: Target }) {
  const refining = useSignal(false);
  const waiting = pending(target);
  const canSave = target.query.kind === "examples" && waiting === 0;
  return (
    <li class={auto.value ? "target unused" : "target"} style={{ "--sound": target.colour }}>
      <div class="line">
        <span class="swatch" />
        <input
          class="name"
          type="text"
          aria-label="Name of the stem"
          value={target.name}
          maxLength={64}
          onChange={(event) => {
            rename(target.id, event.currentTarget.value);
            event.currentTarget.value = targets.value.find(({ id }) => id === target.id)?.name ?? "";
          }}
        />
        <button
          type="button"
          class="icon-button"
          aria-label={`Remove ${target.name}`}
          onClick={() => remove(target.id)}
        >
          <Icon name="close" />
        </button>
      </div>
      <div class="line">
        <span class="quiet clip" title={describe(target.query)}>
          {waiting ? "uploading …" : describe(target.query)}
        </span>
        <span class="spring" />
        {canSave && (
          <button
            type="button"
            class="link"
            aria-label={`Save ${target.name} for later`}
            onClick={() => void saveQuery(target)}
          >
            Save
          </button>
        )}
        {!target.not && (
          <button
            type="button"
            class="link"
            aria-expanded={refining.value}
            title="Name a similar sound that is not meant"
            onClick={() => (refining.value = !refining.value)}
          >
            Not this …
          </button>
        )}
      </div>
      {target.not && (
        <div class="line">
          <span class="quiet clip">
            not{" "}
            {target.not.kind === "label" ? target.not.label : target.not.examples.map(({ name }) => name).join(", ")}
          </span>
          <span class="spring" />
          <button type="button" class="link" onClick={() => change(target.id, { not: null })}>
            Take back
          </button>
        </div>
      )}
      <ExampleTracks query={target.query} onChange={(query) => change(target.id, { query })} />
      {target.not && <ExampleTracks query={target.not} onChange={(not) => change(target.id, { not })} />}
      {refining.value && !target.not && (
        <div class="refine">
          <LabelField
            label="A similar sound that is not meant"
            placeholder="crow, speech …"
            submit="Not this"
            onlyClasses
            onChoose={(label) => {
              change(target.id, { not: { kind: "label", label } });
              refining.value = false;
            }}
          />
          <FileButton accept={ACCEPT} onFiles={(files) => void addNegativeExamples(target.id, files)}>
            <Icon name="file" /> Not like this file …
          </FileButton>
        </div>
      )}
      {target.error && (
        <p class="wrong" role="alert">
          {target.error.text} {target.error.code && <code>{target.error.code}</code>}
        </p>
      )}
    </li>
  );
}

/** Choices of the audio track, for each example that is a file with several. */
function ExampleTracks<Q extends Query | Negative>({ query, onChange }: { query: Q; onChange: (query: Q) => void }) {
  if (query.kind !== "examples") return null;
  const { examples } = query;
  const choose = (at: number, track: number | undefined): void =>
    onChange({ ...query, examples: examples.map((one, index) => (index === at ? withTrack(one, track) : one)) });
  return (
    <>
      {examples.map(({ name, tracks = [], track }, at) => (
        <TrackSelect
          key={at}
          label={`Track of ${name}`}
          tracks={tracks}
          track={track ?? null}
          onChoose={(chosen) => choose(at, chosen ?? undefined)}
        />
      ))}
    </>
  );
}

function withTrack({ track: _, ...example }: Example, track: number | undefined): Example {
  return track === undefined ? example : { ...example, track };
}

function describe(query: Query): string {
  switch (query.kind) {
    case "spans":
      return `heard at ${query.spans.map(({ start, end }) => `${clock(start)}–${clock(end)}`).join(", ")}`;
    case "examples":
      return `like ${query.examples.map(({ name }) => name).join(", ")}`;
    case "label":
      return `the class ${query.label}`;
    case "text":
      return `“${query.text}”`;
    case "saved":
      return "a saved sound";
  }
}
