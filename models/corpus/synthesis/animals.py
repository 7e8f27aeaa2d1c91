"""Birds, dogs, cattle and crickets."""

from collections.abc import Callable

import numpy as np

from models.corpus.clips import RATE
from models.corpus.synthesis.elements import (
    Random,
    Sound,
    add,
    breakpoints,
    curve,
    envelope,
    log_uniform,
    noise,
    samples,
    sawtooth,
    throat,
    tone,
)


def _repeat(frames: int, random: Random, call: Callable[[], Sound], pauses: tuple[float, float]) -> Sound:
    """Repeat calls with pauses between them, of seconds whose logarithm is uniform."""
    sound, at = np.zeros(frames), random.uniform(0, pauses[0])
    while at < frames / RATE:
        grain = call()
        add(sound, grain, at, random.uniform(0.5, 1))
        at += len(grain) / RATE + log_uniform(random, *pauses)
    return sound


def _contour(seconds: float, random: Random, base: float, spread: float, points: int) -> Sound:
    """Return a pitch that moves smoothly through random points within a factor of `spread` from a base in Hz."""
    frames = samples(seconds)
    values = base * spread ** random.uniform(-1, 1, points)
    places = np.linspace(0, points - 1, frames)
    whole = np.minimum(places.astype(int), points - 2)
    smooth = 0.5 - 0.5 * np.cos(np.pi * (places - whole))
    return values[whole] * (1 - smooth) + values[whole + 1] * smooth


def bird(frames: int, random: Random) -> Sound:
    """A song of a few syllables, whistled, trilled or buzzed, repeated with small changes."""
    base = log_uniform(random, 1800, 6500)
    syllables = []
    for _ in range(int(random.integers(1, 6))):
        pitch = _contour(
            log_uniform(random, 0.03, 0.4), random, base, random.uniform(1.05, 1.6), int(random.integers(2, 5))
        )
        count = len(pitch)
        if random.random() < 0.3:  # a buzz or a warble
            depth, rate = random.uniform(0.02, 0.12), random.uniform(20, 120)
            pitch = pitch * (1 + depth * np.sin(2 * np.pi * rate * np.arange(count) / RATE))
        sung = tone(pitch, np.array([1, random.uniform(0, 0.3), random.uniform(0, 0.1)]))
        syllables.append(sung * envelope(count, 0.005, 0.3 * count / RATE))
    order = [
        (int(random.integers(len(syllables))), int(random.choice([1, 1, 2, 5])))
        for _ in range(int(random.integers(1, 6)))
    ]
    gap = log_uniform(random, 0.02, 0.2)

    def phrase() -> Sound:
        pieces = []
        for which, times in order:
            for _ in range(times):
                pieces += [syllables[which] * random.uniform(0.6, 1), np.zeros(samples(gap * random.uniform(0.8, 1.2)))]
        return np.concatenate(pieces)

    return _repeat(frames, random, phrase, (0.3, 3))


def pigeon(frames: int, random: Random) -> Sound:
    """Cooing: low, rough, swelling."""
    base = random.uniform(250, 500)

    def coo() -> Sound:
        pitch = _contour(random.uniform(0.3, 0.9), random, base, 1.12, 4)
        count = len(pitch)
        rough = 1 + random.uniform(0.2, 0.7) * np.sin(2 * np.pi * random.uniform(20, 40) * np.arange(count) / RATE)
        return tone(pitch, np.array([1, 0.3, 0.1])) * rough * envelope(count, 0.08, 0.15)

    return _repeat(frames, random, coo, (0.1, 1.2))


def crow(frames: int, random: Random) -> Sound:
    """Caws."""
    base, formant = random.uniform(350, 650), random.uniform(1100, 1900)

    def caw() -> Sound:
        pitch = (
            _contour(random.uniform(0.2, 0.5), random, base, 1.1, 3) * curve(samples(0.6), random, 90, 0.93, 1.07)[0]
        )
        count = len(pitch)
        source = tone(pitch * curve(count, random, 120, 0.94, 1.06), sawtooth(20, 0.3)) + 2 * noise(count, random)
        return throat(source, [(formant, 300, 1.0), (formant * 1.9, 500, 0.4)]) * envelope(count, 0.02, 0.08)

    return _repeat(frames, random, caw, (0.15, 1.5))


def dog(frames: int, random: Random) -> Sound:
    """Barks of one dog, in groups."""
    size = log_uniform(random, 0.55, 1.7)  # of the throat: small dogs are high
    base = random.uniform(380, 560) / size
    formants = [(800 / size, 250, 1.0), (1500 / size, 300, 0.7), (2900 / size, 500, 0.35)]
    breath = random.uniform(0.3, 1.5)

    def bark() -> Sound:
        seconds = random.uniform(0.09, 0.24)
        pitch = base * breakpoints(samples(seconds), [0, 0.25 * seconds, seconds], [0.75, 1.15, 0.6])
        pitch = pitch * random.uniform(0.92, 1.08) * curve(len(pitch), random, 150, 0.96, 1.04)
        source = tone(pitch, sawtooth(24, 0.6)) + breath * noise(len(pitch), random, -2)
        place = np.linspace(0, 1, len(pitch))
        return throat(source, formants) * np.minimum(place / 0.08, 1) * (1 - place) ** 1.3

    def group() -> Sound:
        pieces = []
        for _ in range(int(random.integers(1, 5))):
            pieces += [bark(), np.zeros(samples(random.uniform(0.08, 0.35)))]
        return np.concatenate(pieces)

    return _repeat(frames, random, group, (0.2, 2))


def cattle(frames: int, random: Random) -> Sound:
    """Moos."""
    base = random.uniform(75, 200)

    def moo() -> Sound:
        seconds = random.uniform(0.8, 2.2)
        pitch = base * breakpoints(samples(seconds), [0, 0.4 * seconds, seconds], [0.75, 1.1, 0.85])
        rough = curve(len(pitch), random, 60, 0.97, 1.03)
        source = tone(pitch * rough, sawtooth(40, 0.6)) + 0.3 * noise(len(pitch), random, -3)
        lips = np.linspace(0.2, 1, len(pitch))
        hummed, opened = (
            throat(source, [(300, 100, 1.0)]),
            throat(source, [(550, 150, 1.0), (1000, 200, 0.6), (2400, 400, 0.2)]),
        )
        return (hummed * (1 - lips) + opened * lips) * envelope(len(pitch), 0.12, 0.25)

    return _repeat(frames, random, moo, (0.3, 2.5))


def cricket(frames: int, random: Random) -> Sound:
    """Chirps: pulses of a high tone; one or several crickets."""
    sound = np.zeros(frames)
    for _ in range(int(random.integers(1, 5))):
        pitch, pulses = random.uniform(3200, 6500), int(random.choice([2, 3, 4, 8, 400]))
        rate, pause = random.uniform(20, 60), random.uniform(0.1, 0.8)
        times = np.arange(frames) / RATE + random.uniform(0, 1)
        chirp, period = pulses / rate, pulses / rate + pause
        place = times % period
        pulse = np.sin(np.pi * np.minimum((place * rate) % 1 * 1.6, 1)) ** 2 * (place < chirp)
        sound += random.uniform(0.2, 1) * pulse * tone(np.full(frames, pitch), np.array([1, 0.1]))
    return sound
