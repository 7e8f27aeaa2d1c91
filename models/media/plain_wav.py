"""RIFF WAVE as most programs write it, and our own decoder: one or two channels of 16-bit integers or 32-bit floats.

Its samples are read as they stand: FFmpeg gives the same ones, in small frames, and takes ten times as long. Any other
file is FFmpeg's: a WAV that is cut off, or tells what does not fit, or may hold another codec.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.media.headers import wav_is_plain

_BEFORE_SOUND = (b"JUNK", b"LIST", b"PEAK", b"fact")  # chunks that tell nothing of the samples
_MOST_HEADER_BYTES = 256
_TYPES = {(1, 16): np.dtype("<i2"), (3, 32): np.dtype("<f4")}  # by the format's tag and its bits
_CODECS = {np.dtype("<i2"): "pcm_s16le", np.dtype("<f4"): "pcm_f32le"}
_MOST_CHANNELS = 2  # of more, the format has to tell the speakers


class PlainWav:
    """A file of that kind. frame_size: 0, as a codec's of any number of samples. Raises ValueError for another file."""

    container = "wav"
    frame_size = 0
    mask = 0
    damaged = 0

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(_MOST_HEADER_BYTES)
        self._path = path
        self._start, size, self._type, self.channels, self.rate = _parse(head, path.stat().st_size)
        if self._type.kind == "i" and not wav_is_plain(path):
            raise ValueError("there may be another codec in the samples")
        self.frames = size // (self._type.itemsize * self.channels)
        self.codec = _CODECS[self._type]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.rate

    def warnings(self) -> list[str]:
        """Return none: the file is whole."""
        return []

    def close(self) -> None:
        """Do nothing: the file is open only while its blocks are read."""

    def blocks(self, frames: int) -> Iterator[NDArray[np.float32]]:
        """Yield float32 (channels, n), full scale 1, of so many frames each; the last may be shorter."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            for begin in range(0, self.frames, frames):
                count = min(frames, self.frames - begin) * self.channels
                samples = np.fromfile(file, self._type, count).reshape(-1, self.channels).T
                if self._type.kind == "f":
                    yield samples
                else:
                    yield samples.astype(np.float32) * np.float32(2.0**-15)


def _parse(head: bytes, file_bytes: int) -> tuple[int, int, np.dtype, int, int]:
    """Return where the samples begin, their bytes, type, channels and rate. Raises ValueError."""
    riff, size, kind = struct.unpack_from("<4sI4s", head) if len(head) >= 12 else (b"", 0, b"")
    if riff != b"RIFF" or kind != b"WAVE" or size + 8 != file_bytes:
        raise ValueError("no WAV that is whole")
    place, layout = 12, None
    while place + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, place)
        place += 8
        if name == b"fmt " and layout is None and size == 16 and place + size <= len(head):
            layout = struct.unpack_from("<HHIIHH", head, place)
        elif name == b"data" and layout is not None:
            tag, channels, rate, rate_bytes, frame_bytes, bits = layout
            type_of_samples = _TYPES.get((tag, bits))
            if (
                type_of_samples is None
                or not 1 <= channels <= _MOST_CHANNELS
                or not rate
                or frame_bytes != type_of_samples.itemsize * channels
                or rate_bytes != rate * frame_bytes
                or not size
                or size % frame_bytes
                or place + size != file_bytes
            ):
                break
            return place, size, type_of_samples, channels, rate
        elif name not in _BEFORE_SOUND:
            break
        place += size + size % 2
    raise ValueError("a WAV of another kind")
