import { describe, expect, it } from "vitest";
import { lanes } from "./lanes";

const PATHS = new Map([
  ["Animal", ["Animal"]],
  ["Bird", ["Animal", "Bird"]],
  ["Chirp", ["Animal", "Bird", "Chirp"]],
  ["Music", ["Music"]],
]);
const event = (label: string, start: number, end: number, confidence = 0.5) => ({ label, start, end, confidence });

describe("lanes", () => {
  it("leave out a class where a more specific one says the same", () => {
    const found = lanes([event("Animal", 0, 10, 0.9), event("Bird", 0, 9.5, 0.8), event("Chirp", 0, 9, 0.7)], PATHS);
    expect(found.map(({ label }) => label)).toEqual(["Chirp"]);
  });

  it("keep what the more specific class does not say", () => {
    const found = lanes([event("Bird", 0, 3, 0.9), event("Bird", 6, 10, 0.6), event("Chirp", 0, 3, 0.7)], PATHS);
    expect(found).toEqual([
      { label: "Chirp", events: [event("Chirp", 0, 3, 0.7)], confidence: 0.7 },
      { label: "Bird", events: [event("Bird", 6, 10, 0.6)], confidence: 0.6 },
    ]);
  });

  it("count overlapping children once", () => {
    const children = [event("Chirp", 0, 4), event("Chirp", 0, 4), event("Chirp", 1, 4)];
    expect(lanes([event("Bird", 0, 10, 0.9), ...children], PATHS).map(({ label }) => label)).toContain("Bird");
  });

  it("show the surest first", () => {
    const found = lanes([event("Music", 0, 1, 0.3), event("Chirp", 5, 6, 0.8)], PATHS);
    expect(found.map(({ label }) => label)).toEqual(["Chirp", "Music"]);
  });
});
