"""Measurements of every recording of a corpus, for `corpus stats` and `corpus check`."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.corpus.clips import RATE
from models.corpus.decoded import decode
from models.corpus.duplicates import thumbnail
from models.corpus.parallel import in_order
from models.corpus.sources.formats import open_source
from models.corpus.sources.recordings import Fault, Recording, Samples

# A silent recording's peak is below -60 dBFS.
SILENT_PEAK = 1e-3
# Clipping leaves runs of samples at full scale; shorter runs are chance.
RUN = 3
CLIPPED_SAMPLES = 10


@dataclass(frozen=True)
class Measurement:
    """One recording: its labels and source, `seconds`, `peak` (1 is full scale), `level` (RMS in dBFS, -inf for digital
    silence), `clipped` (samples in runs at full scale), a hash of its samples, and its thumbnail (see `duplicates`)."""

    key: str
    split: str
    mids: tuple[str, ...]
    group: str
    kind: str
    place: str
    seconds: float
    peak: float
    level: float
    clipped: int
    digest: bytes
    thumbnail: np.ndarray = field(compare=False)

    @property
    def is_silent(self) -> bool:
        return self.peak < SILENT_PEAK

    @property
    def is_clipped(self) -> bool:
        return self.clipped >= CLIPPED_SAMPLES


@dataclass
class CorpusMeasurements:
    """The recordings' measurements, in the source's order, and all faults."""

    recordings: list[Measurement] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def measure_corpus(
    corpus: Path, splits: Iterable[str], workers: int, advance: Callable[[float], None] = lambda _: None
) -> CorpusMeasurements:
    """Decode and measure all recordings of some splits. `advance` is called with the seconds of each. Raises as
    `open_source`."""
    found = CorpusMeasurements()
    for split in splits:
        for measurement, faults in in_order(_Measure(split), open_source(corpus, split), workers):
            found.faults += faults
            if measurement is not None:
                found.recordings.append(measurement)
            advance(measurement.seconds if measurement else 0.0)
    return found


def count_clipping(samples: Samples) -> int:
    """Count the samples (n,) int16 in runs of RUN or more at full scale."""
    full = (samples == 32767) | (samples == -32768)
    if not full.any():
        return 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], full.astype(np.int8), [0]])))
    runs = edges[1::2] - edges[::2]
    return int(runs[runs >= RUN].sum())


@dataclass(frozen=True)
class _Measure:
    """Function of one row that can be pickled for another process."""

    split: str

    def __call__(self, row: Recording | Fault) -> tuple[Measurement | None, list[Fault]]:
        recording, samples, faults = decode(row)
        if recording is None:
            return None, faults
        power = float(np.square(samples, dtype=np.float64).mean()) / 32768**2
        measurement = Measurement(
            key=recording.key,
            split=self.split,
            mids=recording.mids,
            group=recording.group,
            kind=recording.kind,
            place=recording.place,
            seconds=len(samples) / RATE,
            peak=float(np.abs(samples.astype(np.int32)).max()) / 32768,
            level=10 * np.log10(power) if power else -np.inf,
            clipped=count_clipping(samples),
            digest=hashlib.blake2b(samples.tobytes(), digest_size=16).digest(),
            thumbnail=thumbnail(samples),
        )
        return measurement, faults
