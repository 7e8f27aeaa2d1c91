// The stems of a finished separation as tracks under the recording, with what is known about each.

import { signal } from "@preact/signals";
import type { Separation, TargetState } from "../api/types";
import { withParameters } from "../api/client";
import { MIXTURE, type Track } from "../playback/audible";
import { loadingTracks, mixtureHeld, playbackFailure, setTrack, toggleSolo, tracks } from "../playback/transport";
import { separation, stems, type ShownStem } from "../state/separation";
import { Canvas } from "./canvas";
import { Icon } from "./icons";
import { Drawing, paintPictures, paintWaveform, Row } from "./Timeline";

const ABSENT = 0.5; // a presence below this is said
const DISAGREE = 0.5; // a coherence below this is said
const showsSpectrograms = signal(false);

export function Stems() {
  const job = separation.value;
  if (!job || !stems.value.length) return null;
  const canShow = stems.value.some(({ pictures }) => pictures);
  const mixture = tracks.value.find(({ id }) => id === MIXTURE);
  return (
    <>
      <div class="row caption stems-caption">
        <div class="head">
          <h2 id="stems">Stems</h2>
        </div>
        <div class="lane bar">
          <span class="quiet clip" role="status">
            {loadingTracks.value
              ? "Loading the stems …"
              : (playbackFailure.value ?? "Keys 1 to 9: one alone")}
          </span>
          <span class="spring" />
          {canShow && (
            <button
              type="button"
              aria-pressed={showsSpectrograms.value}
              onClick={() => (showsSpectrograms.value = !showsSpectrograms.value)}
            >
              Spectrograms
            </button>
          )}
          {mixture && <HoldButton />}
          <a class="button" href={job.archive_url} download>
            <Icon name="download" /> All as a zip
          </a>
        </div>
      </div>
      {stems.value.map((shown, index) => (
        <StemRow key={shown.track} shown={shown} number={index + 1} job={job} />
      ))}
      {job.targets
        .filter(({ error }) => error)
        .map(({ name, error, warnings }) => (
          <p key={name} class="advice wrong">
            {name}: {[error?.detail, ...warnings].join(" ")} <code>{error?.code}</code>
          </p>
        ))}
    </>
  );
}

/** The mixture, while the button or the key B is held. */
function HoldButton() {
  const hold = (): void => void (mixtureHeld.value = true);
  const release = (): void => void (mixtureHeld.value = false);
  return (
    <button
      type="button"
      aria-pressed={mixtureHeld.value}
      title="Hold to hear the recording (B)"
      onPointerDown={hold}
      onPointerUp={release}
      onPointerLeave={release}
      onKeyDown={(event) => (event.key === " " || event.key === "Enter") && hold()}
      onKeyUp={release}
      onBlur={release}
    >
      Hold to compare <kbd>B</kbd>
    </button>
  );
}

function StemRow({ shown, number, job }: { shown: ShownStem; number: number; job: Separation }) {
  const { stem, colour } = shown;
  const track = tracks.value.find(({ id }) => id === shown.track);
  if (!track) return null;
  const target = job.targets.find(({ name }) => name === stem.name);
  const drawn = showsSpectrograms.value ? shown.pictures : null;
  return (
    <>
      <Row class={drawn ? "stem pictured" : "stem"} head={<StemHead shown={shown} track={track} number={number} />}>
        {drawn ? (
          <Canvas key="picture" paint={(surface) => paintPictures(surface, drawn)} />
        ) : (
          <Canvas key="wave" paint={(surface) => paintWaveform(surface, shown.peaks, surface.colour(colour), 1)} />
        )}
        <Drawing tiles={drawn ?? shown.peaks} failed="It cannot be drawn." />
      </Row>
      {target && <Advice target={target} />}
    </>
  );
}

function StemHead({ shown, track, number }: { shown: ShownStem; track: Track; number: number }) {
  const { stem, colour } = shown;
  const title = stem.name === "residual" ? "Everything else" : stem.name;
  return (
    <div class="stem-head" style={{ "--sound": colour }}>
      <div class="line">
        <span class="swatch" />
        <strong class="clip" title={stem.name}>
          {title}
        </strong>
        <a
          class="icon-button"
          href={withParameters(stem.url, { download: 1 })}
          aria-label={`Download ${stem.name}`}
          download
        >
          <Icon name="download" />
        </a>
      </div>
      <div class="line">
        <button
          type="button"
          class="small"
          aria-pressed={track.solo}
          aria-label={`Solo ${stem.name}`}
          title={`Hear it alone (${number})`}
          onClick={() => toggleSolo(track.id)}
        >
          Solo
        </button>
        <button
          type="button"
          class="small"
          aria-pressed={track.mute}
          aria-label={`Mute ${stem.name}`}
          onClick={() => setTrack(track.id, { mute: !track.mute })}
        >
          Mute
        </button>
        <input
          type="range"
          aria-label={`Gain of ${stem.name}`}
          aria-valuetext={decibels(track.gain)}
          min={-40}
          max={12}
          step={1}
          value={20 * Math.log10(track.gain)}
          title={decibels(track.gain)}
          onInput={(event) => setTrack(track.id, { gain: 10 ** (event.currentTarget.valueAsNumber / 20) })}
          onDblClick={() => setTrack(track.id, { gain: 1 })}
        />
      </div>
      <span class="quiet clip">
        {stem.loudness === null ? "silent" : `${minus(stem.loudness)} LUFS, peak ${decibels(stem.peak)}`}
      </span>
    </div>
  );
}

/** What may be wrong with a stem, where the user can do something about it. */
function Advice({ target }: { target: TargetState }) {
  const notes: string[] = [];
  if (target.presence !== null && target.presence < ABSENT) {
    const percent = Math.round(100 * target.presence);
    notes.push(`It may not be in this recording: ${percent} %. Try a span or another example.`);
  }
  if (target.coherence !== null && target.coherence < DISAGREE) {
    notes.push(`Its examples differ (they agree by ${Math.round(100 * target.coherence)} %): leave out the odd one.`);
  }
  notes.push(...target.warnings);
  const meant = target.matched?.map(({ label }) => label).join(", ");
  if (meant) notes.push(`Taken to mean: ${meant}.`);
  if (!notes.length) return null;
  const isWarning = target.presence !== null && target.presence < ABSENT;
  return (
    <div class="row advice-row">
      <div class="head" />
      <p class={isWarning ? "lane advice wrong" : "lane advice"}>{notes.join(" ")}</p>
    </div>
  );
}

export function decibels(linear: number): string {
  return linear > 0 ? `${minus(20 * Math.log10(linear))} dB` : "silent";
}

function minus(value: number): string {
  return value.toFixed(1).replace("-", "−");
}
