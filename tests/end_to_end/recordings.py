"""Recordings for tests."""

import functools
import io

import numpy as np
import soundfile

RATE = 16_000


def flac(samples: np.ndarray) -> bytes:
    """Encode samples (n,) at 16 kHz as 16-bit FLAC."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@functools.lru_cache(maxsize=4)
def noise(seconds: float) -> bytes:
    """Return noise as FLAC, always the same for a duration."""
    return flac(0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)))
