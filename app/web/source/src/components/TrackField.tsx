// Which audio track of a file with several is meant: of the recording, which is drawn and separated, or of an example.

import type { AudioTrack } from "../api/types";
import { chooseTrack, readableTracks, recording } from "../state/recording";
import { channels } from "./Timeline";

export function TrackField() {
  const opened = recording.value;
  if (!opened) return null;
  const tracks = readableTracks(opened.audio);
  if (tracks.length < 2) return null;
  return (
    <div class="line track">
      <TrackSelect label="Audio track" tracks={tracks} track={opened.track} onChoose={chooseTrack} />
      {opened.track !== null && <span class="quiet">The browser plays the file’s first track.</span>}
    </div>
  );
}

/** A choice of one of the tracks that can be read, if there are several; null: the first. */
export function TrackSelect(props: {
  label: string;
  tracks: AudioTrack[];
  track: number | null;
  onChoose: (track: number | null) => void;
}) {
  const { label, tracks, track, onChoose } = props;
  const [first] = tracks;
  if (!first || tracks.length < 2) return null;
  const choose = (chosen: number): void => onChoose(chosen === first.track ? null : chosen);
  return (
    <label class="field">
      {label}
      <select value={track ?? first.track} onChange={(event) => choose(Number(event.currentTarget.value))}>
        {tracks.map((one) => (
          <option key={one.track} value={one.track}>
            {describe(one)}
          </option>
        ))}
      </select>
    </label>
  );
}

function describe({ track, title, language, codec, channels: count }: AudioTrack): string {
  return [`${track}`, title, language, codec, channels(count)].filter(Boolean).join(", ");
}
