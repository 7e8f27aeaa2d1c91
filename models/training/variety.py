"""Variety: what may change about a sound without changing what it is.

6.6 hours of clips are few; what holds a model back is sounds it never heard, so each clip is heard at other speeds,
through other filters and in other rooms.
"""

import numpy as np

SPEEDS = (0.8, 1.27)
FILTER_DB = 10.0
FILTER_POINTS = 8
ROOM_SECONDS = (0.15, 0.8)


def at_speed(samples: np.ndarray, start: float, frames: int, speed: float) -> np.ndarray:
    """`frames` samples of int16 or float `samples` from `start` on, played at `speed` (pitch moves along); silence
    beyond the ends. float32."""
    places = start + speed * np.arange(frames)
    first = max(0, int(np.ceil(-start / speed)))
    last = min(frames, int((len(samples) - 2 - start) / speed) + 1)
    played = np.zeros(frames, np.float32)
    if last <= first:
        return played
    inside = places[first:last]
    whole = inside.astype(np.int64)
    fraction = (inside - whole).astype(np.float32)
    played[first:last] = samples[whole] * (1 - fraction) + samples[whole + 1] * fraction
    return played


def filter_curve(bins: int, rate: int, random: np.random.Generator) -> np.ndarray:
    """Gains (bins,) of a smooth random equaliser within +-10 dB, its points an octave or so apart."""
    points = random.uniform(-FILTER_DB, FILTER_DB, FILTER_POINTS)
    octaves = np.log2(np.linspace(0, rate / 2, bins).clip(60) / 60)
    smooth = np.interp(octaves, np.linspace(0, np.log2(rate / 2 / 60), FILTER_POINTS), points)
    return (10 ** (smooth / 20)).astype(np.float32)


def in_room(samples: np.ndarray, rate: int, random: np.random.Generator) -> np.ndarray:
    """The sound with exponentially decaying reflections, denser and duller with time; same length, float32."""
    seconds = random.uniform(*ROOM_SECONDS)
    frames = int(seconds * rate)
    times = np.arange(frames) / rate
    reflections = random.standard_normal(frames).astype(np.float32) * 10 ** (-3 * times / seconds)
    reflections[: int(random.uniform(0.001, 0.02) * rate)] = 0
    size = 1 << (len(samples) + frames - 1).bit_length()
    spectrum = np.fft.rfft(reflections, size)
    spectrum /= 1 + np.linspace(0, rate / 2, len(spectrum)) / random.uniform(1500, 8000)
    spectrum *= random.uniform(0.1, 0.7) / np.sqrt((np.abs(spectrum) ** 2).mean() + 1e-12)
    return np.fft.irfft(np.fft.rfft(samples, size) * (1 + spectrum), size)[: len(samples)].astype(np.float32)
