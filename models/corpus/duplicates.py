"""Detection of duplicates: the same sound exactly, at another level, through another codec, or cut by milliseconds.

Two steps. Each recording has a thumbnail, its log-mel spectrogram without silent ends, pooled to a fixed size; a matrix
product of two splits' thumbnails finds similar pairs of about the same length. The highest normalised cross-correlation
of their waveforms over all shifts then decides: other takes of a sound have similar thumbnails, but do not correlate.

Torch is imported where thumbnails are made or compared: the commands that need none start in a blink.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from models.corpus.clips import RATE
from models.corpus.decoded import decode
from models.corpus.sources.formats import open_source
from models.corpus.sources.recordings import Recording, Samples

BANDS = 24
PARTS = 32
LOWEST_HZ, HIGHEST_HZ = 100.0, 7000.0  # the range that every codec preserves
FFT_SIZE = 1024
RANGE = 1e-4  # 40 dB below the loudest: codecs do not preserve less
SOUNDING = 1e-4  # ends this far below the loudest 10 ms are cut off

ALIKE = 0.85  # cosine of two thumbnails from which waveforms are compared
LONGER = 1.15, 0.05  # largest difference in length: factor, and seconds
SAME = 0.9  # correlation of waveforms from which they are one sound: other takes reach 0.87, codecs keep 0.93
CLOSER = 8  # largest number of candidates for a recording, the most similar first
ROWS = 512  # thumbnails compared at a time
LOW_RATE = 8  # waveforms are compared at 32 kHz / 8, the band that codecs and edits change least
LONGEST = 30.0  # seconds of them that are compared


@dataclass(frozen=True)
class Pair:
    """Two recordings, by split and key, that are one sound; `exact`: sample for sample."""

    first: tuple[str, str]
    second: tuple[str, str]
    exact: bool
    correlation: float


def thumbnail(samples: Samples) -> np.ndarray:
    """int16 (n,) at 32 kHz -> float16 (PARTS * BANDS,), of length 1 and mean 0; zeros for silence."""
    import torch

    from models.spectrum import mel_bands, stft

    floats = torch.from_numpy(samples.astype(np.float32) / 32768)
    # Short sounds need a smaller hop, for at least PARTS frames.
    hop = int(np.clip(len(floats) // (4 * PARTS), 32, 320))
    bands = mel_bands(FFT_SIZE, RATE, BANDS, LOWEST_HZ, HIGHEST_HZ)
    power = stft(floats[None], FFT_SIZE, hop)[0].abs().square() @ bands
    loudness = power.sum(1)
    sounding = torch.nonzero(loudness > SOUNDING * loudness.max())[:, 0]
    if not len(sounding):
        return np.zeros(PARTS * BANDS, np.float16)
    power = power[int(sounding[0]) : int(sounding[-1]) + 1]
    pooled = torch.nn.functional.adaptive_avg_pool1d(power.T, PARTS).T
    log = torch.log10(pooled / pooled.max() + RANGE)
    log = log - log.mean()
    return (log / log.norm().clamp(min=1e-6)).flatten().half().numpy()


def alike(
    first: np.ndarray, second: np.ndarray, first_seconds: np.ndarray, second_seconds: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows of two sets of thumbnails (N, K), (M, K) that are similar and of about the same length."""
    import torch

    factor, more = LONGER
    others = torch.from_numpy(second).float().T
    for start in range(0, len(first), ROWS):
        cosines = (torch.from_numpy(first[start : start + ROWS]).float() @ others).numpy()
        longer = np.maximum(first_seconds[start : start + ROWS, None], second_seconds)
        shorter = np.minimum(first_seconds[start : start + ROWS, None], second_seconds)
        cosines[longer > factor * shorter + more] = -1
        for row in np.flatnonzero((cosines >= ALIKE).any(axis=1)):
            best = np.argsort(-cosines[row])[:CLOSER]
            yield from ((start + int(row), int(column)) for column in best if cosines[row, column] >= ALIKE)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the highest normalised cross-correlation, in either polarity, of waveforms (n,), (m,) over all shifts."""
    size = 1 << (len(first) + len(second) - 1).bit_length()
    spectra = np.fft.rfft(first, size), np.fft.rfft(second, size)
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.abs(np.fft.irfft(spectra[0] * spectra[1].conj(), size)).max() / scale) if scale else 0.0


def compare(corpus: Path, pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]]) -> Iterator[Pair]:
    """Yield the pairs, each of two (split, key), that are one sound; decodes the recordings again."""
    pairs = list(pairs)
    wanted: dict[str, set[str]] = defaultdict(set)
    for split, key in (member for pair in pairs for member in pair):
        wanted[split].add(key)
    low: dict[tuple[str, str], np.ndarray] = {}
    for split, keys in wanted.items():
        for row in open_source(corpus, split):
            if isinstance(row, Recording) and row.key in keys:
                low[split, row.key] = _low_rate(decode(row)[1])
    for first, second in pairs:
        likeness = correlation(low[first], low[second])
        if likeness >= SAME:
            yield Pair(first, second, False, likeness)


def _low_rate(samples: Samples) -> np.ndarray:
    floats = samples[: round(LONGEST * RATE)].astype(np.float32) / 32768
    return soxr.resample(floats, RATE, RATE // LOW_RATE)
