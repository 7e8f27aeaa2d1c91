"""Sirens, horns, alarms and bells."""

import numpy as np

from models.corpus.clips import RATE
from models.corpus.synthesis.elements import (
    Random,
    Sound,
    add,
    band,
    breakpoints,
    envelope,
    log_uniform,
    noise,
    sawtooth,
    strike,
    tone,
)


def _horn_speaker(sound: Sound, random: Random) -> Sound:
    """Drive a sound into a horn that passes the middle and distorts a little."""
    driven = np.tanh(sound / np.abs(sound).max() * random.uniform(1, 4))
    return band(driven, random.uniform(250, 600), random.uniform(3000, 7000))


def _passing(frames: int, random: Random) -> tuple[Sound, Sound]:
    """Return a factor of the pitch and a gain: a vehicle that stands, or passes by."""
    if random.random() < 0.5:
        return np.ones(frames), np.ones(frames)
    times = np.arange(frames) / RATE - random.uniform(0, frames / RATE)
    speed, distance = random.uniform(6, 25), random.uniform(5, 40)  # m/s, m
    away = np.sqrt(distance**2 + (speed * times) ** 2)
    return 1 / (1 + speed**2 * times / away / 343), distance / away


def _sweeps(frames: int, random: Random, period: float, low: float, high: float) -> Sound:
    """Return a pitch that rises and falls between two values, faster at first."""
    place = (np.arange(frames) / RATE / period + random.random()) % 1
    rising = random.uniform(0.3, 0.75)
    up = np.where(place < rising, place / rising, (1 - place) / (1 - rising))
    return low * (high / low) ** (up ** random.uniform(0.6, 1.4))


def siren(frames: int, random: Random) -> Sound:
    """An electronic siren: wail, yelp, two tones, or very fast; or several one after the other."""
    low, high = random.uniform(350, 800), random.uniform(1000, 1900)
    kinds = random.choice(["wail", "wail", "yelp", "two tones", "two tones", "fast"], int(random.integers(1, 3)))
    pieces = []
    for kind, count in zip(kinds, np.diff(np.linspace(0, frames, len(kinds) + 1).astype(int)), strict=True):
        if kind == "two tones":
            lower = random.uniform(380, 700)
            upper = lower * random.choice([1.26, 1.335, 1.414, 1.2])
            seconds = random.uniform(0.35, 1.1)
            is_upper = (np.arange(count) / RATE / seconds).astype(int) % 2 == 1
            pieces.append(np.where(is_upper, upper, lower))
        else:
            period = {
                "wail": random.uniform(2.5, 8),
                "yelp": random.uniform(0.2, 0.5),
                "fast": random.uniform(0.05, 0.12),
            }
            pieces.append(_sweeps(int(count), random, period[str(kind)], low, high))
    moved, gain = _passing(frames, random)
    harmonics = sawtooth(12, random.uniform(0.9, 2.0))
    if random.random() < 0.5:
        harmonics[1::2] = 0  # square
    return _horn_speaker(tone(np.concatenate(pieces) * moved, harmonics), random) * gain


def civil_defense_siren(frames: int, random: Random) -> Sound:
    """A motor siren that runs up, stays and runs down."""
    seconds = frames / RATE
    top, rise = random.uniform(350, 900), random.uniform(1.5, 4)
    begin = random.uniform(-3, 1)
    times = [begin, begin + rise, begin + rise + random.uniform(0.5, seconds), begin + seconds + 8]
    pitch = breakpoints(frames, times, [top * 0.25, top, top, top * 0.2])
    sound = tone(pitch, sawtooth(10, 0.8)) + 0.4 * tone(pitch * random.choice([1.2, 1.5, 1.0]), sawtooth(8, 1.0))
    return band(sound + 0.05 * noise(frames, random, -3), 150, 6000) * breakpoints(frames, times, [0.1, 1, 1, 0.1])


def vehicle_horn(frames: int, random: Random) -> Sound:
    """A car's horn: two notes, in blasts."""
    low = random.uniform(300, 480)
    notes = [low, low * random.choice([1.19, 1.25, 1.26])][: int(random.choice([1, 2, 2]))]
    sound = np.zeros(frames)
    at = random.uniform(0, 0.3)
    while at < frames / RATE:
        seconds = log_uniform(random, 0.12, 2.0)
        count = round(seconds * RATE)
        blast = sum(tone(np.full(count, note), sawtooth(20, 0.7)) for note in notes) * envelope(count, 0.01, 0.04)
        add(sound, blast, at)
        at += seconds + log_uniform(random, 0.1, 2.0)
    return band(sound, 300, random.uniform(3000, 8000))


def train_horn(frames: int, random: Random) -> Sound:
    """Three to five horns in a chord, loud and long."""
    base = random.uniform(220, 370)
    ratios = [1, 1.19, 1.335, 1.5, 1.78][: int(random.integers(2, 6))]
    sound, at = np.zeros(frames), random.uniform(0, 0.5)
    while at < frames / RATE:
        seconds = log_uniform(random, 0.5, 4.0)
        count = round(seconds * RATE)
        bend = breakpoints(count, [0, 0.15], [0.97, 1.0])
        blast = sum(tone(base * ratio * bend, sawtooth(14, 0.9)) for ratio in ratios)
        add(sound, (blast + 0.2 * noise(count, random)) * envelope(count, 0.08, 0.2), at)
        at += seconds + random.uniform(0.2, 1.5)
    return band(sound, 150, random.uniform(2500, 6000))


def beeps(frames: int, random: Random) -> Sound:
    """Groups of equal beeps, such as of an alarm clock or a lorry that reverses."""
    return _beeps(frames, random, log_uniform(random, 700, 3500), log_uniform(random, 0.05, 0.6))


def smoke_alarm(frames: int, random: Random) -> Sound:
    """Three loud beeps of about 3 kHz and a pause."""
    return _beeps(frames, random, random.uniform(2600, 3500), 0.5, 3, 1.5)


def alarm_clock(frames: int, random: Random) -> Sound:
    """Four short beeps and a pause."""
    return _beeps(frames, random, random.uniform(1500, 3000), random.uniform(0.05, 0.1), 4, random.uniform(0.3, 0.7))


def _beeps(
    frames: int, random: Random, hertz: float, seconds: float, group: int | None = None, pause: float | None = None
) -> Sound:
    group = int(random.integers(1, 5)) if group is None else group
    pause = random.uniform(0.2, 1.2) if pause is None else pause
    count = round(seconds * RATE)
    beep = tone(np.full(count, hertz), sawtooth(8, random.uniform(0.8, 4))) * envelope(count, 0.003, 0.005)
    sound, at = np.zeros(frames), random.uniform(0, 0.5)
    while at < frames / RATE:
        for _ in range(group):
            add(sound, beep, at)
            at += seconds * 2
        at += pause
    return sound


def telephone(frames: int, random: Random) -> Sound:
    """A telephone's two bells."""
    bells = [_bell(random, random.uniform(900, 2200), random.uniform(0.2, 0.8)) for _ in range(2)]
    sound, at, number = np.zeros(frames), random.uniform(0, 0.5), 0
    gap, ring, pause = 1 / random.uniform(18, 28), random.uniform(0.4, 2), random.uniform(0.3, 3)
    while at < frames / RATE:
        for _ in range(round(ring / gap)):
            add(sound, bells[number % 2], at, random.uniform(0.8, 1))
            at, number = at + gap, number + 1
        at += pause
    return sound


def _bell(random: Random, hertz: float, seconds: float) -> Sound:
    partials = np.array([0.5, 1, 1.2, 1.5, 2, 2.54, 2.66, 3, 4.2, 5.4, 6.8]) * random.normal(1, 0.01, 11)
    gains = random.uniform(0.2, 1, 11) / np.sqrt(partials)
    return strike(hertz * partials, seconds / partials**0.8, gains)


def church_bell(frames: int, random: Random) -> Sound:
    """One to three bells that swing."""
    sound = np.zeros(frames)
    for _ in range(int(random.integers(1, 4))):
        bell = _bell(random, log_uniform(random, 180, 700), random.uniform(3, 9))
        at, period = random.uniform(0, 2), random.uniform(0.9, 2.5)
        while at < frames / RATE:
            add(sound, bell, at, random.uniform(0.6, 1))
            at += period * random.uniform(0.97, 1.03)
    return sound


def bicycle_bell(frames: int, random: Random) -> Sound:
    """Quick strokes on a small bell."""
    bell = _bell(random, random.uniform(1800, 3500), random.uniform(0.4, 1.2))
    sound, at = np.zeros(frames), random.uniform(0, 0.5)
    while at < frames / RATE:
        for _ in range(int(random.integers(2, 6))):
            add(sound, bell, at, random.uniform(0.5, 1))
            at += random.uniform(0.06, 0.15)
        at += random.uniform(0.3, 1.5)
    return sound
