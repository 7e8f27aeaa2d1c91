"""Stems to files that add up: gated, brought under full scale by one gain, quantised, measured.

Stems wait on disk as float32 until the whole recording is separated, since presence, gates and the gain are decided
once for all of it. The residual is made last, from the stems as a reader will get them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import Cancelled
from models.loudness import LoudnessMeter
from models.media import FORMATS, AudioWriter, content_type, open_writer
from models.options import SeparationOptions
from models.presence import Gate
from models.separation import Source, never

RESIDUAL = "residual"

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


@dataclass(frozen=True)
class StemFile:
    """A stem as written. peak: highest amplitude, 1 is full scale. loudness: LUFS (BS.1770), None for silence."""

    name: str
    path: Path
    content_type: str
    peak: float
    loudness: float | None


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError unless each name can be a file's, none is reserved, and no two differ only in case."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a target's name: letters, digits, space, '_', '.', '-', at most 64")
        if name.lower() == RESIDUAL:
            raise ValueError(f"{name!r} is reserved for what the targets leave")
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two targets have the same name")


class Spool:
    """Stems (Q, C, n) on disk, one file each, written once and read as often as needed. A context manager that
    deletes its files."""

    def __init__(self, folder: Path, stems: int, channels: int) -> None:
        self._paths = [folder / f"{number}.f32" for number in range(stems)]
        self._files = [path.open("w+b") for path in self._paths]
        self._channels = channels

    def append(self, block: Tensor) -> None:
        """(Q, C, n)"""
        for file, stem in zip(self._files, block.numpy(), strict=True):
            file.write(np.ascontiguousarray(stem.T).data)

    def rewind(self) -> None:
        """The next `read` is from the beginning."""
        for file in self._files:
            file.seek(0)

    def read(self, count: int) -> Tensor:
        """The next `count` samples, (Q, C, count). Raises ValueError at the end: the mixture has become longer."""
        wanted = count * self._channels
        stems = np.empty((len(self._files), self._channels, count), np.float32)
        for stem, file in zip(stems, self._files, strict=True):
            part = np.fromfile(file, np.float32, wanted)
            if len(part) < wanted:
                raise ValueError("the mixture is longer than it was when it was separated")
            stem[:] = part.reshape(count, self._channels).T
        return torch.from_numpy(stems)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


def apply_gates(stems: Tensor, gates: Sequence[Gate | None], start: int, rate: int) -> Tensor:
    """Stems (Q, C, n), the first sample being `start` of the recording, each through its gate."""
    if not any(gates):
        return stems
    count = stems.shape[-1]
    return torch.stack(
        [stem * gate.gains(start, count, rate) if gate else stem for stem, gate in zip(stems, gates, strict=True)]
    )


@dataclass(frozen=True)
class SpooledStems:
    """What is to be written: the mixture, its stems waiting in a spool, and their gates (None: open)."""

    source: Source
    spool: Spool
    gates: Sequence[Gate | None]
    cancelled: Callable[[], bool] = never

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Blocks of mixture (C, n) and gated stems (Q, C, n). Raises Cancelled."""
        self.spool.rewind()
        start = 0
        for mixture in self.source.blocks():
            if self.cancelled():
                raise Cancelled("the separation was cancelled")
            stems = apply_gates(self.spool.read(mixture.shape[1]), self.gates, start, self.source.rate)
            yield mixture.numpy(), stems.numpy()
            start += mixture.shape[1]


def write(
    separated: SpooledStems,
    names: Sequence[str],
    folder: Path,
    options: SeparationOptions,
    written: Callable[[int], None],
) -> tuple[list[StemFile], float]:
    """Writes NAME.FORMAT for each stem, and residual.FORMAT; gives the files and the gain that all of them share.

    `written(frames)` is called after each block. A failure leaves none of the files. Raises Cancelled,
    FormatUnsupported.
    """
    names = [*names, RESIDUAL] if options.residual else list(names)
    extension = FORMATS[options.format].extension
    source = separated.source
    writers: list[AudioWriter] = []
    meters = [LoudnessMeter(source.rate, source.channels) for _ in names]
    peaks = np.zeros(len(names))
    try:
        for name in names:
            path = folder / f"{name}.{extension}"
            writers.append(open_writer(path, options.format, source.rate, source.channels, options.bit_depth))
        gain = 1.0 if writers[0].bit_depth == 32 else _gain(separated, options, writers[0])
        frames = 0
        for mixture, stems in separated.blocks():
            total = mixture.astype(np.float64) * gain
            for number, writer in enumerate(writers):
                block = stems[number] * np.float32(gain) if number < len(stems) else _round(total, writer.bit_depth)
                quantised = writer.quantise(block)
                total -= quantised
                writer.write(quantised)
                meters[number].add(quantised)
                peaks[number] = max(peaks[number], np.abs(quantised).max(initial=0))
            frames += mixture.shape[1]
            written(frames)
        for writer in writers:
            writer.close()
    except BaseException:
        for writer in writers:
            writer.__exit__(None, None, None)
            writer.path.unlink(missing_ok=True)
        raise
    files = [
        StemFile(name, writer.path, content_type(options.format), float(peak), meter.loudness())
        for name, writer, peak, meter in zip(names, writers, peaks, meters, strict=True)
    ]
    return files, gain


def _round(samples: NDArray[np.float64], bit_depth: int | None) -> NDArray[np.float32]:
    """To the steps of an integer format before float32 rounds a first time: 24 bits would notice."""
    if bit_depth in (16, 24):
        full = 2.0 ** (bit_depth - 1)
        samples = np.rint(samples * full) / full
    return samples.astype(np.float32)


def _gain(separated: SpooledStems, options: SeparationOptions, writer: AudioWriter) -> float:
    """1 where nothing clips, else the gain with which nothing does, in a format that clips at full scale."""
    step = 2.0 ** (1 - writer.bit_depth) if writer.bit_depth else 0.0
    rounding = step * len(separated.gates) / 2  # of the stems together, which the residual takes up
    clips, excess = False, 1.0
    for mixture, stems in separated.blocks():
        loudest: list[NDArray[np.floating]] = [stems]
        if options.residual:
            left = mixture.astype(np.float64)
            for stem in stems:
                left -= writer.quantise(stem)
            loudest.append(left)
        # -1 can be written, +1 cannot, and what rounds to either is as good.
        highest, lowest = max(part.max(initial=0) for part in loudest), min(part.min(initial=0) for part in loudest)
        clips |= highest >= 1 - step / 2 if step else highest > 1
        clips |= lowest < -1 - step / 2
        excess = max(excess, highest / (1 - 2 * step - rounding), -lowest / (1 - step - rounding))
    return 1 / (excess * (1 + step)) if clips else 1.0
