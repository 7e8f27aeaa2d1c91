import { expect, it } from "vitest";
import { audibleGains, MIXTURE, type Track } from "./audible";
import { catchUpRate } from "./streamed";

const track = (id: string, change: Partial<Track> = {}): Track => ({
  id,
  name: id,
  url: "",
  colour: "",
  solo: false,
  mute: false,
  gain: 1,
  ...change,
});

it.each([
  ["all but the muted", [track(MIXTURE, { mute: true }), track("a"), track("b", { gain: 0.5 })], false, [0, 1, 0.5]],
  [
    "only what is solo, though it is muted",
    [track(MIXTURE), track("a", { solo: true, mute: true }), track("b")],
    false,
    [0, 1, 0],
  ],
  [
    "the mixture alone while it is held",
    [track(MIXTURE, { mute: true, gain: 0.5 }), track("a", { solo: true })],
    true,
    [1, 0],
  ],
])("sounds: %s", (_, tracks, held, gains) => {
  expect([...audibleGains(tracks, held).values()]).toEqual(gains);
});

it("catches up gently, and stays put when together", () => {
  expect(catchUpRate(0.002)).toBe(1);
  expect(catchUpRate(0.02)).toBeCloseTo(1.04);
  expect(catchUpRate(-10)).toBe(0.92);
});
