"""Rain, wind, water and fire."""

import numpy as np

from models.corpus.clips import RATE
from models.corpus.synthesis.elements import (
    Random,
    Sound,
    add,
    band,
    curve,
    log_uniform,
    noise,
    power_law,
    resonate,
    samples,
    scatter,
    strike,
)


def rain(frames: int, random: Random) -> Sound:
    """Noise of many far drops, and single near ones."""
    bed = band(noise(frames, random, random.uniform(-4, 0)), random.uniform(200, 1500), random.uniform(7000, 16000))
    drops = [_drop(random, 800, 8000) for _ in range(24)]
    near = scatter(frames, random, log_uniform(random, 20, 600), drops, lambda: power_law(random, 3))
    steady = curve(frames, random, 0.5, random.uniform(0.5, 0.9), 1)
    return steady * (0.1 * bed + random.uniform(0.1, 0.8) * near)


def _drop(random: Random, low: float, high: float) -> Sound:
    hertz = np.array([log_uniform(random, low, high) for _ in range(3)])
    grain = strike(hertz, random.uniform(0.005, 0.04, 3), random.uniform(0.3, 1, 3))
    click = noise(samples(0.002), random) * np.linspace(1, 0, samples(0.002))
    add(grain, click, 0, random.uniform(0.2, 1))
    return grain


def wind(frames: int, random: Random) -> Sound:
    """Gusts: dark noise whose strength and colour move together, with a whistle at times."""
    gusts = curve(frames, random, random.uniform(0.3, 1.2), 0.05, 1) * curve(frames, random, 3, 0.7, 1)
    dark = band(noise(frames, random, random.uniform(-9, -5)), 40, 3000)
    center, layers = log_uniform(random, 200, 700), []
    for part in range(5):  # the brighter bands sound in the strongest gusts
        layers.append(resonate(noise(frames, random), center * 1.4**part, center * 0.4) * gusts ** (1 + 0.7 * part))
    whistle = resonate(noise(frames, random), random.uniform(500, 1500), random.uniform(15, 60)) * gusts**3
    return 0.5 * dark * gusts + np.sum(layers, axis=0) + random.choice([0, 0, 2]) * whistle


def waterfall(frames: int, random: Random) -> Sound:
    """Mostly noise, steady."""
    bed = band(noise(frames, random, random.uniform(-5, -2)), random.uniform(60, 300), random.uniform(6000, 16000))
    drops = [_drop(random, 300, 3000) for _ in range(40)]
    return bed * curve(frames, random, 6, 0.85, 1) + 0.5 * scatter(frames, random, 300, drops, random.random)


def waves(frames: int, random: Random) -> Sound:
    """Surf that comes and goes."""
    sound, at = np.zeros(frames), -random.uniform(0, 4)
    while at < frames / RATE:
        seconds = random.uniform(3, 8)
        count = samples(seconds)
        place = np.linspace(0, 1, count)
        swell = np.where(place < 0.35, place / 0.35, (1 - place) / 0.65) ** random.uniform(1.2, 2.5)
        bright = band(noise(count, random, -2), 400, random.uniform(5000, 14000)) * swell**2
        add(sound, 0.6 * band(noise(count, random, -5), 40, 1200) * swell + bright, at, random.uniform(0.5, 1))
        at += seconds * random.uniform(0.5, 0.9)
    return sound + 0.03 * noise(frames, random, -4)


def fire(frames: int, random: Random) -> Sound:
    """Crackles of all strengths, lapping flames and hiss."""
    crackles = []
    for _ in range(30):
        count = samples(log_uniform(random, 0.001, 0.02))
        burst = noise(count, random) * np.geomspace(1, 0.01, count)
        crackles.append(band(np.pad(burst, (0, 200)), log_uniform(random, 300, 3000), 15000))
    busy = curve(frames, random, 1, 0.1, 1)
    crackle = scatter(frames, random, log_uniform(random, 8, 80), crackles, lambda: power_law(random, 4), busy)
    lapping = band(noise(frames, random, -6), 30, random.uniform(200, 600)) * curve(frames, random, 6, 0.1, 1) ** 2
    hiss = band(noise(frames, random), 3000, 14000) * curve(frames, random, 2, 0.3, 1)
    return crackle + random.uniform(0.02, 0.25) * lapping + random.uniform(0.003, 0.02) * hiss
