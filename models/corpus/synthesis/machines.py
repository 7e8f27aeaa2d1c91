"""Engines, aircraft, tools and clocks."""

import numpy as np
from scipy import signal

from models.corpus.clips import RATE
from models.corpus.synthesis.elements import (
    Random,
    Sound,
    add,
    band,
    breakpoints,
    curve,
    log_uniform,
    noise,
    resonate,
    samples,
    sawtooth,
    strike,
    tone,
)


def _engine(frames: int, random: Random, firing: Sound) -> Sound:
    """A piston engine: pulses at a rate (n,) in Hz, uneven between cylinders, through the exhaust's resonances."""
    phase = np.cumsum(firing) / RATE
    fired = np.flatnonzero(np.diff(phase.astype(int), prepend=-1))
    cylinders = random.uniform(0.6, 1, int(random.choice([1, 2, 3, 4, 6])))
    pulses = np.zeros(frames)
    jitter = random.normal(0, 0.02 * RATE / firing.mean(), len(fired)).astype(int)
    places = np.clip(fired + jitter, 0, frames - 1)
    pulses[places] = cylinders[np.arange(len(places)) % len(cylinders)] * random.uniform(0.8, 1, len(places))
    length = samples(0.6 / float(firing.mean()))
    explosion = noise(length, random, -3) * np.geomspace(1, 0.01, length)
    thump = np.exp(-np.linspace(0, 6, length)) * np.sin(np.linspace(0, 3 * np.pi, length))
    fired_sound = signal.oaconvolve(pulses, random.uniform(0.1, 0.6) * explosion + thump)[:frames]
    pipes = [(log_uniform(random, 60, 1500), random.uniform(30, 200)) for _ in range(5)]
    body = np.sum([resonate(fired_sound, hertz, width) for hertz, width in pipes], axis=0)
    rattle = band(noise(frames, random, -3), 500, 6000) * np.abs(band(fired_sound, high=200))
    return body + 0.4 * fired_sound + random.uniform(0.05, 0.5) * rattle


def engine(frames: int, random: Random) -> Sound:
    """An engine whose speed follows the driver."""
    return _engine(frames, random, curve(frames, random, random.uniform(0.3, 1), 0.6, 1.6) * random.uniform(25, 90))


def motorcycle(frames: int, random: Random) -> Sound:
    """Accelerations and gears."""
    times, values, at = [0.0], [random.uniform(30, 60)], 0.0
    while at < frames / RATE:
        at += random.uniform(0.6, 2.5)
        times += [at, at + 0.15]
        top = random.uniform(70, 160)
        values += [top, top * random.uniform(0.4, 0.7)]
    return _engine(frames, random, breakpoints(frames, times, values))


def chainsaw(frames: int, random: Random) -> Sound:
    """A small engine at high speed, under changing load."""
    sound = _engine(frames, random, curve(frames, random, 1.2, 0.55, 1.2) * random.uniform(90, 190))
    return sound + 0.2 * np.std(sound) * band(noise(frames, random), 1000, 9000)


def helicopter(frames: int, random: Random) -> Sound:
    """Blades that beat, and a turbine."""
    beat = random.uniform(9, 24)
    place = (np.arange(frames) / RATE * beat) % 1
    slap = np.exp(-place * random.uniform(4, 10))
    air = band(noise(frames, random, -4), 40, random.uniform(600, 2500))
    thump = tone(np.full(frames, beat), sawtooth(12, 0.5))
    whine = tone(np.full(frames, random.uniform(900, 3000)), sawtooth(3)) * random.uniform(0, 0.05)
    return (air * (slap + 0.15) + 0.3 * band(thump, 30, 400) + whine) * curve(frames, random, 0.3, 0.4, 1)


def aircraft(frames: int, random: Random) -> Sound:
    """A jet that passes over."""
    gain = curve(frames, random, 0.3, 0.2, 1)
    roar = band(noise(frames, random, -4), 60, log_uniform(random, 1200, 8000))
    whine = tone(random.uniform(1500, 4000) * curve(frames, random, 0.3, 0.85, 1.15), sawtooth(2))
    return (roar + 0.1 * whine) * gain


def train(frames: int, random: Random) -> Sound:
    """Wheels over joints of the rails, and rolling noise."""
    rumble = band(noise(frames, random, -5), 30, 900) * curve(frames, random, 3, 0.6, 1)
    clack = strike(random.uniform(150, 1800, 8), random.uniform(0.03, 0.2, 8), random.uniform(0.2, 1, 8))
    knocks, at = np.zeros(frames), random.uniform(0, 0.5)
    period, axles = random.uniform(0.5, 1.3), random.uniform(0.1, 0.22)
    while at < frames / RATE:
        for axle in range(2):
            add(knocks, clack, at + axle * axles, random.uniform(0.7, 1))
        at += period * random.uniform(0.98, 1.02)
    squeal = resonate(noise(frames, random), random.uniform(2000, 5000), 20) * curve(frames, random, 1, -1, 1).clip(0)
    return rumble + random.uniform(0.2, 1) * knocks + random.choice([0, 0, 1]) * squeal


def drill(frames: int, random: Random) -> Sound:
    """A power tool in bursts, slower under load."""
    sound, at = np.zeros(frames), random.uniform(0, 0.3)
    pitch = random.uniform(150, 700)
    while at < frames / RATE:
        seconds = random.uniform(0.6, 4)
        count = samples(seconds)
        speed = breakpoints(count, [0, 0.2, seconds - 0.2, seconds], [0.3, 1, 0.95, 0.2]) * curve(
            count, random, 3, 0.85, 1
        )
        gear = tone(pitch * speed, random.uniform(0.1, 1, 20) / np.arange(1, 21) ** 0.5)
        add(sound, (gear + 1.5 * band(noise(count, random), 800, 12000)) * speed, at)
        at += seconds + random.uniform(0.1, 1)
    return sound


def mains_hum(frames: int, random: Random) -> Sound:
    """The harmonics of 50 or 60 Hz."""
    hum = tone(np.full(frames, random.choice([50.0, 60.0])), random.uniform(0, 1, 16) / np.arange(1, 17) ** 0.6)
    return hum + random.uniform(0.003, 0.02) * noise(frames, random, -3)


def clock(frames: int, random: Random) -> Sound:
    """Tick and tock."""
    modes = log_uniform(random, 800, 3000) * random.uniform(0.5, 3, 6)
    sounds = [
        strike(modes * factor, random.uniform(0.005, 0.05, 6), random.uniform(0.2, 1, 6))
        for factor in (1, random.uniform(0.7, 1))
    ]
    sound, at, number, period = np.zeros(frames), random.uniform(0, 0.5), 0, random.choice([0.2, 0.25, 0.4, 0.5, 1.0])
    while at < frames / RATE:
        add(sound, sounds[number % 2], at, random.uniform(0.9, 1))
        at, number = at + period * random.normal(1, 0.005), number + 1
    return sound
