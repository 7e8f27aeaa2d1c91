// Recording with the microphone, to a WAV file: browsers' own formats tell no length and cannot be searched.

import { signal } from "@preact/signals";

const LONGEST = 300; // seconds

export const canRecord = typeof navigator.mediaDevices?.getUserMedia === "function"; // not on plain HTTP elsewhere

/** The recording that is being made, its length so far in seconds; `stop` ends it. */
export const microphone = signal<{ seconds: number; stop: () => void } | null>(null);

/** Records until `stop` is called; resolves with a WAV file. Rejects if there is no microphone, or it is refused. */
export async function recordMicrophone(): Promise<Blob> {
  const unprocessed = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: unprocessed }).catch(() => {
    throw new Error("The microphone cannot be used. Allow it in the browser, or choose a file.");
  });
  const recorder = new MediaRecorder(stream);
  const parts: Blob[] = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const stopped = new Promise<void>((resolve) => (recorder.onstop = () => resolve()));
  const stop = (): void => {
    if (recorder.state !== "inactive") recorder.stop();
  };
  recorder.start();
  const begun = performance.now();
  const tick = (): void => {
    const seconds = (performance.now() - begun) / 1000;
    microphone.value = { seconds, stop };
    if (seconds >= LONGEST) stop();
  };
  tick();
  const timer = setInterval(tick, 100);
  await stopped;
  clearInterval(timer);
  microphone.value = null;
  for (const track of stream.getTracks()) track.stop();
  const encoded = await new Blob(parts, { type: recorder.mimeType }).arrayBuffer();
  const decoded = await new OfflineAudioContext(1, 1, 48000).decodeAudioData(encoded);
  return encodeWav(decoded.getChannelData(0), decoded.sampleRate);
}

/** Mono samples as a 16-bit WAV file. */
export function encodeWav(samples: Float32Array, rate: number): Blob {
  const header = new DataView(new ArrayBuffer(44));
  const text = (at: number, word: string): void => {
    for (let index = 0; index < word.length; index++) header.setUint8(at + index, word.charCodeAt(index));
  };
  const bytes = samples.length * 2;
  text(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, bytes, true);
  const content = new DataView(new ArrayBuffer(bytes));
  samples.forEach((sample, at) => content.setInt16(2 * at, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([header.buffer, content.buffer], { type: "audio/wav" });
}
