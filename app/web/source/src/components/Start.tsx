// The start: ways to open a recording.

import { signal, useSignal } from "@preact/signals";
import { bundledExamples, openBundledExample } from "../state/bundled_examples";
import { canRecord, microphone, recordMicrophone } from "../state/microphone";
import { report } from "../state/notice";
import { openFile, openUrl, recording } from "../state/recording";
import { clock, length } from "../timeline/ticks";
import { ACCEPT, FileButton } from "./FileButton";
import { Icon } from "./icons";

/** The address that is being typed; it outlasts a refusal. Null where none is asked for. */
const address = signal<string | null>(null);

export function Start() {
  return (
    <section class="start">
      <h2>Point at a sound. Get that sound alone.</h2>
      <p class="lead">
        Open a recording, say which sound you mean, by pointing at it, by an example or in words, and hear it alone,
        beside everything else.
      </p>
      <div class="drop-zone">
        <p>
          <strong>Drop a recording here</strong>
        </p>
        <div class="ways">
          <FileButton accept={ACCEPT} class="primary" onFiles={([file]) => file && void openFile(file.blob, file.name)}>
            <Icon name="file" /> Choose a file
          </FileButton>
          {canRecord && <RecordButton />}
          <AddressField />
        </div>
      </div>
      <Examples />
    </section>
  );
}

function RecordButton() {
  const mine = useSignal(false);
  const record = async (): Promise<void> => {
    if (microphone.value) return microphone.value.stop();
    mine.value = true;
    try {
      await openFile(await recordMicrophone(), "my recording.wav");
    } catch (error) {
      report(error);
    } finally {
      mine.value = false;
    }
  };
  return (
    <button type="button" aria-pressed={mine.value} onClick={() => void record()}>
      <Icon name="microphone" /> {mine.value ? `Stop, ${clock(microphone.value?.seconds ?? 0)}` : "Record"}
    </button>
  );
}

function AddressField() {
  const typed = address.value;
  const open = async (): Promise<void> => {
    const url = typed?.trim();
    if (!url) return;
    await openUrl(url);
    if (recording.value) address.value = null;
  };
  if (typed === null) {
    return (
      <button type="button" onClick={() => (address.value = "")}>
        <Icon name="link" /> Paste an address
      </button>
    );
  }
  return (
    <form
      class="line address"
      onSubmit={(event) => {
        event.preventDefault();
        void open();
      }}
    >
      <input
        type="url"
        aria-label="Address of a recording"
        placeholder="https://…"
        required
        ref={(field) => field?.focus()}
        value={typed}
        onInput={(event) => (address.value = event.currentTarget.value)}
      />
      <button type="submit">Open</button>
    </form>
  );
}

function Examples() {
  if (!bundledExamples.value.length) return <div class="examples" />;
  return (
    <div class="examples">
      <h3>Or try it with an example</h3>
      <ul>
        {bundledExamples.value.map((example) => (
          <li key={example.file}>
            <button type="button" class="card" onClick={() => void openBundledExample(example)}>
              <Icon name="play" />
              <span>
                <strong>{example.title}</strong>
                <span class="quiet" title={example.attribution}>
                  {length(example.seconds)}, {example.licence}
                </span>
              </span>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
