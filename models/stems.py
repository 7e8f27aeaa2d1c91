"""Writing of stems to files that add up to the mixture: gated, scaled by one gain against clipping, and quantised.

Stems are spooled to disk as float32 until the whole recording is separated, since presence, gates and the gain are
decided once for all of it. The residual is computed last, from the stems as written.
"""

import hashlib
import unicodedata
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

_MAX_NAME = 64  # characters
_MAX_FILE_NAME = 255  # bytes, of most file systems


@dataclass(frozen=True)
class StemFile:
    """A written stem. peak: highest amplitude, full scale 1. loudness: LUFS (BS.1770), None for silence."""

    name: str
    path: Path
    content_type: str
    peak: float
    loudness: float | None


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError unless each name can be a file's, none is reserved, and no two differ only in case or encoding.

    `app.separations.names` has the same rule for requests.
    """
    for name in names:
        if not _is_valid(name):
            raise ValueError(
                f"{name!r} is not a valid name: use 1 to {_MAX_NAME} printable characters, without slashes and without "
                "spaces at the ends, and not . or .."
            )
        if _fold(name) == RESIDUAL:
            raise ValueError(f"the name {name!r} is reserved")
    if len({_fold(name) for name in names}) < len(names):
        raise ValueError("two targets have the same name")


def file_name(name: str, extension: str) -> str:
    """Return the name of a stem's file: NAME.EXTENSION, with a digest in place of its end if it is too long."""
    complete = f"{name}.{extension}"
    if len(complete.encode()) <= _MAX_FILE_NAME:
        return complete
    end = f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}.{extension}"
    return name.encode()[: _MAX_FILE_NAME - len(end)].decode(errors="ignore") + end


def _is_valid(name: str) -> bool:
    is_text = 1 <= len(name) <= _MAX_NAME and name.isprintable() and name == name.strip()
    return is_text and not {"/", "\\"} & set(name) and name not in (".", "..")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Spool:
    """Stems (Q, C, n) on disk, one file each, written once and read repeatedly. A context manager that deletes its
    files."""

    def __init__(self, folder: Path, stems: int, channels: int) -> None:
        self._paths = [folder / f"{number}.f32" for number in range(stems)]
        self._files = [path.open("w+b") for path in self._paths]
        self._channels = channels

    def append(self, block: Tensor) -> None:
        """Append a block (Q, C, n)."""
        for file, stem in zip(self._files, block.numpy(), strict=True):
            file.write(np.ascontiguousarray(stem.T).data)

    def rewind(self) -> None:
        """Make the next `read` start at the beginning."""
        for file in self._files:
            file.seek(0)

    def read(self, count: int) -> Tensor:
        """Return the next `count` samples, (Q, C, count). Raises ValueError beyond the end."""
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
    """Apply each stem's gate to stems (Q, C, n) whose first sample is `start` of the recording."""
    if not any(gates):
        return stems
    count = stems.shape[-1]
    return torch.stack(
        [stem * gate.gains(start, count, rate) if gate else stem for stem, gate in zip(stems, gates, strict=True)]
    )


@dataclass(frozen=True)
class SpooledStems:
    """The input of `write`: the mixture, its stems in a spool, and their gates (None: unchanged)."""

    source: Source
    spool: Spool
    gates: Sequence[Gate | None]
    cancelled: Callable[[], bool] = never

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield blocks of the mixture (C, n) and the gated stems (Q, C, n). Raises Cancelled."""
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
    """Write NAME.FORMAT for each stem, and residual.FORMAT; return the files and their common gain.

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
            path = folder / file_name(name, extension)
            writers.append(
                open_writer(path, options.format, source.rate, source.channels, options.bit_depth, source.mask)
            )
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
    """Round to the steps of an integer format before the conversion to float32, whose rounding 24 bits would notice."""
    if bit_depth in (16, 24):
        full = 2.0 ** (bit_depth - 1)
        samples = np.rint(samples * full) / full
    return samples.astype(np.float32)


def _gain(separated: SpooledStems, options: SeparationOptions, writer: AudioWriter) -> float:
    """Return 1 if nothing clips, else the gain that avoids clipping, in a format that clips at full scale."""
    step = 2.0 ** (1 - writer.bit_depth) if writer.bit_depth else 0.0
    rounding = step * len(separated.gates) / 2  # of the stems together, which the residual absorbs
    clips, excess = False, 1.0
    for mixture, stems in separated.blocks():
        loudest: list[NDArray[np.floating]] = [stems]
        if options.residual:
            left = mixture.astype(np.float64)
            for stem in stems:
                left -= writer.quantise(stem)
            loudest.append(left)
        # Integer formats hold -1 but not +1; compare what rounds to either.
        highest, lowest = max(part.max(initial=0) for part in loudest), min(part.min(initial=0) for part in loudest)
        clips |= highest >= 1 - step / 2 if step else highest > 1
        clips |= lowest < -1 - step / 2
        excess = max(excess, highest / (1 - 2 * step - rounding), -lowest / (1 - step - rounding))
    return 1 / (excess * (1 + step)) if clips else 1.0
