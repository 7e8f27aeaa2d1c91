"""Recordings for jobs that need one."""

import functools
import io

import numpy as np
import soundfile

RATE = 16_000


def flac(samples: np.ndarray) -> bytes:
    """Samples (n,) at 16 kHz as a file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@functools.lru_cache(maxsize=4)
def noise(seconds: float) -> bytes:
    """A recording of noise; the same one whenever it is asked for."""
    return flac(0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)))
