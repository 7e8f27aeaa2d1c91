import { expect, it } from "vitest";
import { envelope, levelAt } from "./envelope";

it("joins the channels and finds the level at a time in the finest envelope", () => {
  const channel = (peak: number) => ({ minimum: [-peak, -0.1], maximum: [0.1, peak / 2] });
  const coarse = envelope({ points: 2, duration: 10, channels: [channel(0.25), channel(0.5)] });
  expect([...coarse.low].map((low) => low.toFixed(2))).toEqual(["-0.50", "-0.10"]);
  const fine = envelope({ points: 2, start: 0, duration: 5, channels: [channel(1)] });
  expect(levelAt([coarse, fine], 1)).toBe(1);
  expect(levelAt([coarse, fine], 7)).toBe(0.25);
  expect(levelAt([fine], 7)).toBeNull();
});
