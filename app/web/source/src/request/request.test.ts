import { describe, expect, it } from "vitest";
import openapi from "../../../../../openapi.json";
import type { Target } from "../state/targets";
import { buildRequest, type Choices, readNegative, readQuery } from "./build";
import { DEFAULTS, FORMATS } from "./output";
import { snippet } from "./snippets";

const target = (fields: Partial<Target>): Target => ({
  id: 1,
  colour: "",
  name: "sound",
  query: { kind: "label", label: "Dog" },
  not: null,
  error: null,
  ...fields,
});
const MIXTURE = { audio_id: "aud_1" };
const choices = (output: Partial<Choices["output"]> = {}, others: Partial<Choices> = {}): Choices => ({
  output: { ...DEFAULTS, ...output },
  model: null,
  webhook: "",
  ...others,
});
const TARGETS = [
  target({ name: "dog's bark", not: { kind: "label", label: "Speech" } }),
  target({ name: "here", query: { kind: "spans", spans: [{ start: 1.23456, end: 2 }] } }),
  target({ name: "like", query: { kind: "examples", examples: [{ name: 'a "b".wav', audioId: "aud_2" }] } }),
  target({
    name: "words",
    query: { kind: "text", text: "a car: true" },
    not: { kind: "examples", examples: [{ name: "c.wav", audioId: "aud_3", track: 2 }] },
  }),
  target({ name: "mine", query: { kind: "saved", id: "qry_1", name: "mine" } }),
];

describe("output", () => {
  const { format, bit_depth: _, ...others } = openapi.components.schemas.Output.properties;

  it("has the formats of the service", () => {
    expect(Object.keys(FORMATS).sort()).toEqual([...format.enum].sort());
  });

  it("has the defaults of the service", () => {
    const defaults = Object.entries({ format, ...others }).map(([name, field]) => [name, field.default]);
    expect(DEFAULTS).toEqual(Object.fromEntries(defaults));
  });
});

describe("request", () => {
  it("says each way of asking, and of the output only what is not default", () => {
    const output = { format: "wav", bit_depth: 16, quality: "high" } as const;
    expect(buildRequest(MIXTURE, TARGETS, null, choices(output))).toEqual({
      mixture: { audio_id: "aud_1" },
      targets: [
        { name: "dog's bark", label: "Dog", not_label: "Speech" },
        { name: "here", spans: [{ start: 1.235, end: 2 }] },
        { name: "like", examples: [{ audio_id: "aud_2" }] },
        { name: "words", text: "a car: true", not_examples: [{ audio_id: "aud_3", track: 2 }] },
        { name: "mine", query_id: "qry_1" },
      ],
      output,
    });
    expect(buildRequest(MIXTURE, TARGETS, 8, choices())).toEqual({
      mixture: { audio_id: "aud_1" },
      auto: { max_targets: 8 },
    });
  });

  it("says track, model and webhook where they were chosen", () => {
    const chosen = choices({}, { model: "base@5", webhook: " https://example.org/hook " });
    expect(buildRequest({ ...MIXTURE, track: 2 }, TARGETS, 8, chosen)).toEqual({
      mixture: { audio_id: "aud_1", track: 2 },
      auto: { max_targets: 8 },
      model: "base@5",
      webhook: { url: "https://example.org/hook" },
    });
    expect(buildRequest(MIXTURE, TARGETS, 8, choices({}, { webhook: " " }))).not.toHaveProperty("webhook");
  });

  it("is read back as it was asked", () => {
    const files = new Map([
      ["aud_2", 'a "b".wav'],
      ["aud_3", "c.wav"],
    ]);
    const sent = buildRequest(MIXTURE, TARGETS, null, choices()).targets ?? [];
    expect(sent.map((one) => readNegative(one, files))).toEqual(TARGETS.map(({ not }) => not));
    const [dog, , like, words, mine] = sent.map((one) => readQuery(one, files));
    expect([dog, like, words, mine]).toEqual([TARGETS[0], TARGETS[2], TARGETS[3], TARGETS[4]].map((one) => one?.query));
  });
});

describe("snippets", () => {
  const call = {
    server: "http://127.0.0.1:8000",
    hasKey: true,
    origin: { kind: "file", name: "it's.wav" } as const,
    request: buildRequest(
      { ...MIXTURE, track: 2 },
      TARGETS,
      null,
      choices({ residual: false, quality: "high" }, { model: "base@5", webhook: "https://example.org/it's" }),
    ),
    files: new Map([
      ["aud_2", 'a "b".wav'],
      ["aud_3", "c.wav"],
    ]),
  };

  it("name files and hold no id of this upload", () => {
    for (const language of ["curl", "python", "javascript"] as const) {
      const text = snippet(call, language);
      expect(text).not.toContain("aud_");
      expect(text).toContain("EARMARK_KEY");
      expect(text).toContain("c.wav");
      expect(text).toMatch(/"quality": "high"/);
      expect(text).toContain(`"track": 2`);
      expect(text).toContain(`"model": "base@5"`);
      expect(text).toContain(language === "curl" ? `/it'\\''s"` : `"webhook": {"url": "https://example.org/it's"}`);
    }
  });

  it("quote what a shell would read", () => {
    const text = snippet(call, "curl");
    expect(text).toContain(`'file=@"it'\\''s.wav"'`);
    expect(text).toContain(`"name": "dog'\\''s bark"`);
    expect(text).toContain(`{"audio_id": "'$example1'"}`);
  });

  it("write Python's constants, but not inside of strings", () => {
    const text = snippet(call, "python");
    expect(text).toContain(`"residual": False`);
    expect(text).toContain(`"text": "a car: true"`);
  });
});
