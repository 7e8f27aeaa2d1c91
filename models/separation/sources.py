"""Recordings in memory and in files as sources that can be read repeatedly."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models.audio import Waveform
from models.media import AudioReader, Limits, open_audio
from models.separation.long_recordings import Source

_BLOCK = 65536
# Samples of a recording that are kept after the first reading, 32 MiB: a minute and a half of stereo at 44.1 kHz. To
# open and decode a short file again takes longer than all else that is done with its samples.
_KEPT_SAMPLES = 8 << 20


def in_memory(recording: Waveform, mask: int = 0) -> Source:
    """Return a source of a recording in memory. mask: its channels' speakers."""
    samples = recording.samples
    return Source(recording.rate, recording.channels, recording.frames, lambda: samples.split(_BLOCK, dim=1), mask)


@contextmanager
def in_file(path: Path, limits: Limits | None = None) -> Iterator[Source]:
    """Open a file as a source, which is decoded block by block whenever it is read; a short one only once.

    Raises subclasses of MediaError, when it is opened and when it is read.
    """
    first = open_audio(path, limits)
    with closing(first):
        known = first.info
        frames = known.frames or (round(known.duration * first.rate) if known.duration else None)
        blocks = _Blocks(path, limits, first)
        yield Source(first.rate, first.channels, frames, blocks, known.mask)


class _Blocks:
    """The blocks of a file, beginning with those of a reader that has just been opened."""

    def __init__(self, path: Path, limits: Limits | None, first: AudioReader) -> None:
        self._path = path
        self._limits = limits
        self._unread: AudioReader | None = first
        self._kept: list[Tensor] | None = None

    def __call__(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield from self._kept
            return
        reader, self._unread = self._unread or open_audio(self._path, self._limits), None
        kept: list[Tensor] | None = []
        count = 0
        with closing(reader):
            for samples in reader:
                block = torch.from_numpy(samples)
                count += block.numel()
                if kept is not None and count <= _KEPT_SAMPLES:
                    kept.append(block)
                else:
                    kept = None
                yield block
        self._kept = kept
