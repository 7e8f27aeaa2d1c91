// What the REST API sends and receives, as far as the page reads it; openapi.json is the whole.

export interface Audio {
  id: string;
  filename: string | null;
  bytes: number;
  codec: string;
  duration: number | null;
  sample_rate: number;
  channels: number;
  tracks?: AudioTrack[];
  expires_at: string;
  url: string;
  peaks_url?: string;
  spectrogram_url?: string;
}

export interface AudioTrack {
  track: number;
  codec: string;
  sample_rate: number;
  channels: number;
  language?: string | null;
  title?: string | null;
  readable: boolean;
}

export interface Model {
  name: string;
  version: string;
  default: boolean;
}

export interface Peaks {
  points: number;
  start?: number; // of what is drawn: it may begin a little before what was asked for
  duration: number;
  channels: { minimum: number[]; maximum: number[] }[];
}

export type Status = "queued" | "running" | "succeeded" | "failed" | "canceled";

export interface Problem {
  code: string;
  detail: string;
}

export interface Job {
  id: string;
  status: Status;
  progress: { ratio: number; stage: string };
  url: string;
  events_url: string;
  queue: { position: number };
  cancel_requested_at: string | null;
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
  expires_at: string | null;
  warnings: string[];
  error: Problem | null;
}

export interface TargetState {
  name: string;
  label: string | null;
  matched?: { label: string; weight: number }[];
  status: Status;
  presence: number | null;
  coherence: number | null;
  warnings: string[];
  error: Problem | null;
}

export interface Stem {
  name: string;
  url: string;
  content_type: string;
  bytes: number;
  peak: number;
  loudness: number | null;
  peaks_url?: string;
  spectrogram_url?: string;
}

export interface Recorded extends AudioReference {
  duration: number | null;
  sample_rate: number;
  channels: number;
}

export interface Separation extends Job {
  archive_url: string;
  mixture: Recorded;
  targets: TargetState[];
  stems: Stem[];
  gain: number;
}

export interface HeardEvent {
  label: string;
  start: number;
  end: number;
  confidence: number;
}

export interface Detection extends Job {
  audio: Recorded;
  tags: { label: string; probability: number }[];
  events: HeardEvent[];
}

export interface SavedQuery extends Job {
  name: string;
  examples: number;
}

export interface Label {
  label: string;
  slug: string;
  path: string[];
  askable: boolean;
  reason: string | null; // why it cannot be asked for
}

export interface LabelSearch {
  data: Label[];
  refusal: string | null; // why a target in these words would be refused
  near: string[]; // then, similar classes that can be asked for
}

export interface Span {
  start: number;
  end: number;
}

export interface AudioReference {
  audio_id: string;
  track?: number;
}

export interface DetectionRequest extends AudioReference {
  model?: string;
}

export interface RequestTarget {
  name?: string;
  spans?: Span[];
  examples?: AudioReference[];
  label?: string;
  text?: string;
  query_id?: string;
  not_label?: string;
  not_examples?: AudioReference[];
}

export interface Output {
  format: Format;
  bit_depth?: number;
  residual: boolean;
  joint: boolean;
  gate: boolean;
  quality: "standard" | "high";
}

export type Format = "flac" | "wav" | "mp3" | "ogg" | "opus" | "m4a";

export interface SeparationRequest {
  mixture: AudioReference;
  targets?: RequestTarget[];
  auto?: { max_targets: number };
  output?: Partial<Output>;
  model?: string;
  webhook?: { url: string };
}
