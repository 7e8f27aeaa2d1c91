// Which audio track of the recording is drawn and separated.

import type { AudioTrack } from "../api/types";
import { chooseTrack, readableTracks, recording } from "../state/recording";
import { channels } from "./Timeline";

export function TrackField() {
  const opened = recording.value;
  const tracks = opened ? readableTracks(opened) : [];
  const [first] = tracks;
  if (!opened || !first || tracks.length < 2) return null;
  const choose = (track: number): void => chooseTrack(track === first.track ? null : track);
  return (
    <div class="line track">
      <label class="field">
        Audio track
        <select value={opened.track ?? first.track} onChange={(event) => choose(Number(event.currentTarget.value))}>
          {tracks.map((one) => (
            <option key={one.track} value={one.track}>
              {describe(one)}
            </option>
          ))}
        </select>
      </label>
      {opened.track !== null && <span class="quiet">The browser plays the file’s first track.</span>}
    </div>
  );
}

function describe({ track, title, language, codec, channels: count }: AudioTrack): string {
  return [`${track}`, title, language, codec, channels(count)].filter(Boolean).join(", ");
}
