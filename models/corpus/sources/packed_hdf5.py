"""Packed HDF5 as common for AudioSet: `audio_name` (bytes), `waveform` int16 (N, samples), `target` bool (N, 527).

Names and targets are read some rows at a time, waveforms one at a time when a recording is read. The rate is the
attribute `sample_rate` or `rate` of the file or of `waveform`; the default is 32 kHz.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.clips import RATE
from models.corpus.reading import as_samples
from models.corpus.sources.recordings import Fault, Recording, Samples, Unusable, key_of, kind_of, unique
from models.corpus.splits import split_of
from models.labels import CLASSES, classes

SUFFIXES = (".h5", ".hdf5")
ROWS = 1024  # read at a time


@dataclass(frozen=True)
class PackedAudio:
    """One row of a packed file."""

    path: Path
    row: int
    rate: int

    def blocks(self, damaged: Callable[[str], None]) -> Iterator[Samples]:
        import h5py

        with h5py.File(self.path) as file:
            samples = np.asarray(_dataset(file, "waveform")[self.row])
        if self.rate == RATE:
            yield samples
        else:
            floats = samples.astype(np.float32)[None] * np.float32(1 / 32768)
            yield from as_samples(lambda _: iter([floats]), self.rate, 1, damaged)


@dataclass(frozen=True)
class Packed:
    """One split of packed files: one file, or a folder of them (`balanced_train.h5`, `unbalanced_train_part00.h5`)."""

    root: Path
    split: str

    @property
    def name(self) -> str:
        return self.root.stem if self.root.is_file() else self.root.name

    def files(self) -> Iterator[Path]:
        yield from (path for path in hdf5_files(self.root) if split_of(path) == self.split)

    def __iter__(self) -> Iterator[Recording | Fault]:
        yield from unique(row for path in self.files() for row in _rows(path))


def hdf5_files(root: Path) -> list[Path]:
    """Return the file itself, or all below a folder."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def splits(root: Path) -> tuple[str, ...]:
    """Return the splits of packed files, by their names."""
    return tuple(sorted({split_of(path) for path in hdf5_files(root)}))


def _rows(path: Path) -> Iterator[Recording | Fault]:
    import h5py

    try:
        with h5py.File(path) as file:
            names, targets, rate = _check(file)
            for first in range(0, len(names), ROWS):
                held = names[first : first + ROWS], targets[first : first + ROWS].astype(bool)
                for row, (name, target) in enumerate(zip(*held, strict=True), first):
                    yield _recording(path, row, name, target, rate)
    except Unusable as error:
        yield Fault(path.name, error.reason, error.detail)
    except OSError as error:
        yield Fault(path.name, "not an HDF5 file", str(error))


def _recording(path: Path, row: int, name: bytes | str, target: np.ndarray, rate: int) -> Recording | Fault:
    place = f"{path.name}:{row}"
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    stem = text.rpartition(".")[0] or text
    mids = tuple(classes()[column].mid for column in np.flatnonzero(target))
    if not stem:
        return Fault(place, "malformed row", "no audio_name")
    if not mids:
        return Fault(place, "no label")
    source = {"package": path.stem, "path": text}
    return Recording(key_of(stem), mids, stem, kind_of(mids), source, PackedAudio(path, row, rate), place)


def _dataset(file: Any, name: str) -> Any:
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise Unusable("missing dataset", name)
    return found


def _check(file: Any) -> tuple[Any, Any, int]:
    """Check an open file and return its names, targets and rate. Raises Unusable."""
    names, waveforms, targets = (_dataset(file, name) for name in ("audio_name", "waveform", "target"))
    if waveforms.dtype != np.int16 or waveforms.ndim != 2:
        raise Unusable("malformed dataset", f"waveform is {waveforms.dtype} {waveforms.shape}, not int16 (N, samples)")
    if targets.shape != (len(waveforms), CLASSES) or names.shape != (len(waveforms),):
        shapes = f"{names.shape}, {waveforms.shape}, {targets.shape}"
        raise Unusable("malformed dataset", f"audio_name, waveform and target are {shapes}")
    for attributes in (file.attrs, waveforms.attrs):
        for name in ("sample_rate", "rate"):
            if name in attributes:
                return names, targets, int(attributes[name])
    return names, targets, RATE
