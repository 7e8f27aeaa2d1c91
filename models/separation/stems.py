"""Writing of stems to files that add up to the mixture: gated, scaled by one gain against clipping, and quantised.

Stems are spooled to disk as float32 until the whole recording is separated, since presence, gates and the gain are
decided once for all of it. The residual is computed last, from the stems as written. While files are written the spool
is deleted, so that a stem takes its place on the disk once.
"""

import hashlib
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import audio
from models.errors import Cancelled
from models.formats import FORMATS, content_type
from models.media import AudioWriter, open_writer
from models.options import SeparationOptions
from models.separation.long_recordings import Source, never
from models.separation.loudness import LoudnessMeter
from models.separation.presence import Gate

RESIDUAL = "residual"

# The last reading of the spool deletes it in files of this size: as much of each stem may be on the disk twice.
_SPOOL_FILE_BYTES = 2 << 20
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


def file_name(name: str, extension: str, source: str = "") -> str:
    """Return the name of a stem's file: NAME.EXTENSION, with a digest in place of its end if it is too long.

    source: the name of the recording that comes before it, SOURCE-NAME.EXTENSION, as far as there is room for it.
    """
    if source:
        own = file_name(name, extension)
        while source and len(os.fsencode(f"{source}-{own}")) > _MAX_FILE_NAME:
            source = source[:-1]
        return f"{source}-{own}" if source else own
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
    """Stems (Q, C, n) on disk, written once and read repeatedly. A context manager that deletes its files.

    Each stem is a row of small files, so that the last reading can delete them one by one: what is written meanwhile
    takes their place on the disk.
    """

    def __init__(self, folder: Path, stems: int, channels: int, file_bytes: int = _SPOOL_FILE_BYTES) -> None:
        self._rows = [_Row(folder, f"{number}-", file_bytes) for number in range(stems)]
        self._channels = channels
        self.peaks = [0.0] * stems  # highest amplitudes

    def append(self, stem: int, block: Tensor) -> None:
        """Append a block (C, n) to a stem."""
        self.peaks[stem] = max(self.peaks[stem], audio.peak(block))
        self._rows[stem].write(np.ascontiguousarray(block.numpy().T))

    def rewind(self, for_the_last_time: bool = False) -> None:
        """Make the next `read` start at the beginning; for the last time: it deletes what has been read."""
        for row in self._rows:
            row.rewind(for_the_last_time)

    def read(self, count: int) -> Tensor:
        """Return the next `count` samples, (Q, C, count), channels interleaved as in files. Raises ValueError beyond
        the end."""
        stems = np.empty((len(self._rows), count, self._channels), np.float32)
        for stem, row in zip(stems, self._rows, strict=True):
            row.read(stem.reshape(-1))
        return torch.from_numpy(stems).transpose(1, 2)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for row in self._rows:
            row.close()


class HeldStems:
    """Stems (Q, C, n) in memory, with the interface of `Spool`."""

    def __init__(self, samples: Tensor) -> None:
        self._samples = samples
        self._next = 0
        self.peaks = samples.abs().amax(dim=(1, 2)).tolist() if samples.numel() else [0.0] * len(samples)

    def rewind(self, for_the_last_time: bool = False) -> None:
        """Make the next `read` start at the beginning."""
        self._next = 0

    def read(self, count: int) -> Tensor:
        """Return the next `count` samples, (Q, C, count)."""
        self._next += count
        return self._samples[:, :, self._next - count : self._next]


class _Row:
    """Numbers (float32) in a row of files."""

    def __init__(self, folder: Path, prefix: str, file_bytes: int) -> None:
        self._start = folder / prefix
        self._file_bytes = file_bytes
        self._paths: list[Path] = []
        self._file: BufferedIOBase | None = None
        self._number = 0  # of the next file to read
        self._deletes = False

    def write(self, numbers: NDArray[np.float32]) -> None:
        """Append numbers."""
        if self._file is None or self._file.tell() >= self._file_bytes:
            self._close_file()
            self._paths.append(self._start.with_name(f"{self._start.name}{len(self._paths)}.f32"))
            self._file = self._paths[-1].open("wb")
        self._file.write(numbers.data)

    def rewind(self, deletes: bool) -> None:
        """End writing or reading, and begin to read; `deletes`: files, once they have been read."""
        self._close_file()
        self._number, self._deletes = 0, deletes

    def read(self, numbers: NDArray[np.float32]) -> None:
        """Fill an array with the next numbers. Raises ValueError beyond the end."""
        rest = numbers.view(np.uint8).data
        while rest:
            if self._file is None:
                if self._number == len(self._paths):
                    raise ValueError("the mixture is longer than it was when it was separated")
                self._file = self._paths[self._number].open("rb")
                self._number += 1
            filled = self._file.readinto(rest)
            rest = rest[filled:]
            if not filled:
                self._close_file()
                if self._deletes:
                    self._paths[self._number - 1].unlink()

    def close(self) -> None:
        """Delete all files."""
        self._close_file()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file, file = None, self._file
            file.close()


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
    """The input of `write`: the mixture, its stems in a spool, and their gates (None: unchanged). peak: the mixture's
    highest amplitude, if it is known."""

    source: Source
    spool: Spool | HeldStems
    gates: Sequence[Gate | None]
    cancelled: Callable[[], bool] = never
    peak: float = math.inf

    def blocks(self, for_the_last_time: bool = False) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield blocks of the mixture (C, n) and the gated stems (Q, C, n). Raises Cancelled.

        for_the_last_time: the spool is deleted meanwhile.
        """
        self.spool.rewind(for_the_last_time)
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
    source_name: str = "",
) -> tuple[list[StemFile], float]:
    """Write NAME.FORMAT for each stem, and residual.FORMAT; return the files and their common gain.

    `written(frames)` is called after each block. source_name: see `file_name`. A failure leaves none of the files.
    Raises Cancelled, FormatUnsupported.
    """
    names = [*names, RESIDUAL] if options.residual else list(names)
    extension = FORMATS[options.format].extension
    source = separated.source
    writers: list[AudioWriter] = []
    meters = [LoudnessMeter(source.rate, source.channels) for _ in names]
    peaks = np.zeros(len(names))
    try:
        for name in names:
            path = folder / file_name(name, extension, source_name)
            writers.append(
                open_writer(path, options.format, source.rate, source.channels, options.bit_depth, source.mask)
            )
        gain = 1.0 if writers[0].bit_depth == 32 else _gain(separated, options, writers[0])
        frames = 0

        def encode(number: int, quantised: NDArray[np.float32]) -> None:
            writers[number].write(quantised)
            meters[number].add(quantised)
            peaks[number] = max(peaks[number], quantised.max(initial=0), -quantised.min(initial=0))

        # Encoders and meters of several stems run side by side, and beside the preparation of the next block.
        with ThreadPoolExecutor(min(torch.get_num_threads(), len(names))) as threads:
            encoding: list[Future[None]] = []
            for mixture, stems in separated.blocks(for_the_last_time=True):
                left = mixture.astype(np.float64)
                if gain != 1:
                    left *= gain
                    stems = stems * np.float32(gain)
                quantised = []
                for stem, writer in zip(stems, writers, strict=False):
                    quantised.append(writer.quantise(stem))
                    left -= quantised[-1]
                if options.residual:
                    quantised.append(writers[-1].quantise(left))
                for each in encoding:
                    each.result()
                encoding = [threads.submit(encode, *block) for block in enumerate(quantised)]
                frames += mixture.shape[1]
                written(frames)
            for each in encoding:
                each.result()
            list(threads.map(lambda writer: writer.close(), writers))
    except BaseException as error:
        for writer in writers:
            writer.__exit__(type(error), error, error.__traceback__)
        raise
    files = [
        StemFile(name, writer.path, content_type(options.format), float(peak), meter.loudness())
        for name, writer, peak, meter in zip(names, writers, peaks, meters, strict=True)
    ]
    return files, gain


def _gain(separated: SpooledStems, options: SeparationOptions, writer: AudioWriter) -> float:
    """Return 1 if nothing clips, else the gain that avoids clipping, in a format that clips at full scale."""
    step = 2.0 ** (1 - writer.bit_depth) if writer.bit_depth else 0.0
    rounding = step * len(separated.gates) / 2  # of the stems together, which the residual absorbs
    # Gates only attenuate, so that neither a stem nor the residual is louder than all peaks together.
    if separated.peak + sum(separated.spool.peaks) < 1 - 2 * step - rounding:
        return 1.0
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
