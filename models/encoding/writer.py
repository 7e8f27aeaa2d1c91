"""Base classes of the writers: of all formats, and of those whose codec needs another rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
import soxr
from numpy.typing import NDArray

Block = NDArray[np.float32]


class AudioWriter(ABC):
    """An audio file open for writing; a context manager that deletes the file if its block raises.

    `rate` is the blocks' rate, `file_rate` the file's; `frames` counts the samples written, at `rate`.
    """

    bit_depth: int | None = None

    def __init__(self, path: Path, rate: int, channels: int, file_rate: int | None = None) -> None:
        self.path = path
        self.rate = rate
        self.channels = channels
        self.file_rate = file_rate or rate
        self.frames = 0

    def write(self, block: Block) -> None:
        """Append samples (channels, n), float32, full scale 1. Raises ValueError for another shape or samples that are
        not finite, OSError if the disk is full."""
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(f"expected ({self.channels}, n) samples, not {block.shape}")
        if not np.isfinite(block).all():
            raise ValueError("samples are not finite")
        self.frames += block.shape[1]
        self._append(block)

    def quantise(self, block: NDArray[np.floating]) -> Block:
        """Return the samples as a reader of the file gets them: rounded and clipped to integers, clipped to 1 for lossy
        codecs (whose coding error is not included), unchanged for 32-bit float."""
        if self.bit_depth is None:
            return np.clip(block, -1.0, 1.0, dtype=np.float32)
        samples = integers(block, self.bit_depth)
        samples *= np.float32(2.0 ** (1 - self.bit_depth))
        return samples

    @abstractmethod
    def close(self) -> None:
        """Finish and close the file."""

    @abstractmethod
    def _append(self, block: Block) -> None:
        """Write samples (channels, n) that `write` has checked."""

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            self.path.unlink(missing_ok=True)
            if kind is None:
                raise
        if kind is not None:
            self.path.unlink(missing_ok=True)


class ResamplingWriter(AudioWriter):
    """A writer that resamples to a rate of its codec; the file holds round(frames x file_rate / rate) samples."""

    def __init__(self, path: Path, rate: int, channels: int, file_rate: int) -> None:
        super().__init__(path, rate, channels, file_rate)
        self._resampler = (
            None if rate == file_rate else soxr.ResampleStream(rate, file_rate, channels, dtype="float32", quality="HQ")
        )
        self._encoded = 0

    def _append(self, block: Block, last: bool = False) -> None:
        block = np.clip(block, -1.0, 1.0, dtype=np.float32)
        if self._resampler is not None:
            block = self._resampler.resample_chunk(np.ascontiguousarray(block.T), last=last).T
            # The resampler may end a sample early or late.
            whole = round(Fraction(self.frames * self.file_rate, self.rate)) if last else 2**62
            block = block[:, : max(whole - self._encoded, 0)]
            if last and self._encoded + block.shape[1] < whole:
                block = np.pad(block, ((0, 0), (0, whole - self._encoded - block.shape[1])))
        self._encoded += block.shape[1]
        if block.shape[1]:
            self._encode(block)

    def _drain(self) -> None:
        if self._resampler is not None:
            self._append(np.zeros((self.channels, 0), np.float32), last=True)

    @abstractmethod
    def _encode(self, block: Block) -> None:
        """Encode samples (channels, n) at `file_rate`."""


@contextmanager
def delete_on_failure(path: Path) -> Iterator[ExitStack]:
    """Close what the stack holds, and delete the file, if a writer cannot begin."""
    with ExitStack() as opened:
        opened.callback(path.unlink, missing_ok=True)
        yield opened
        opened.pop_all()


def integers(block: NDArray[np.floating], bit_depth: int) -> Block:
    """Return samples as integers of a bit depth, rounded and clipped. float64 is rounded once: not to float32 first,
    which 24 bits would notice."""
    # Scaling by a power of two and rounding are exact, in float32 too, and 24-bit integers fit its mantissa.
    full = 2.0 ** (bit_depth - 1)
    scaled = block * block.dtype.type(full)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -full, full - 1, out=scaled).astype(np.float32, copy=False)
