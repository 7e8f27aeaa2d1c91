// Which tracks sound, and how loud: solo, mute and gain, and the mixture alone while its key is held.

export const MIXTURE = "mixture";

export interface Track {
  id: string; // MIXTURE, or `stem:` and the stem's name
  name: string;
  url: string;
  colour: string;
  solo: boolean;
  mute: boolean;
  gain: number; // linear
}

/** The gain of each track by its id. Solo silences all that are not solo; it is stronger than mute. */
export function audibleGains(tracks: Track[], onlyMixture: boolean): Map<string, number> {
  const anySolo = tracks.some((track) => track.solo);
  return new Map(
    tracks.map((track) => {
      const sounds = onlyMixture ? track.id === MIXTURE : anySolo ? track.solo : !track.mute;
      return [track.id, sounds ? (onlyMixture ? 1 : track.gain) : 0];
    }),
  );
}
