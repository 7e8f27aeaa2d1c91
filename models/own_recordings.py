"""Recordings that a command is given: decoded in a child process, since a file may crash FFmpeg, and of any length."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch

from models.audio import Waveform, require_inside
from models.errors import MediaError
from models.media import ANY_LENGTH, MediaInfo, decode_in_child


@dataclass(frozen=True)
class OwnRecording:
    """A decoded recording: `path` is a WAV of 32-bit floats, which exists as long as the context that opened it."""

    path: Path
    info: MediaInfo

    @property
    def warnings(self) -> list[str]:
        """Sentences about what is missing from the recording, or was changed."""
        return list(self.info.warnings)

    def read(self) -> Waveform:
        """Return the whole recording."""
        return self._read(0, None)

    def span(self, start: float, end: float) -> Waveform:
        """Return a part, in seconds. Raises SpanOutside."""
        require_inside(start, end, self.info.duration or 0.0)
        return self._read(round(start * self.info.rate), round(end * self.info.rate))

    def _read(self, start: int, stop: int | None) -> Waveform:
        name: Any = os.fsencode(self.path)  # libsndfile takes names in any encoding, as bytes
        samples, rate = soundfile.read(name, start=start, stop=stop, dtype="float32", always_2d=True)
        return Waveform(torch.from_numpy(samples.T).contiguous(), rate)


@contextmanager
def open_recording(path: Path, track: int | None = None, near: Path | None = None) -> Iterator[OwnRecording]:
    """Decode a file into a temporary folder, by default the system's, else beside `near`, which need not exist.

    Raises MediaError, whose detail begins with the file's name; OSError for an error of this machine.
    """
    folder = None if near is None else next(parent for parent in near.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".decoded-", dir=folder) as private:
        decoded = Path(private) / "recording.wav"
        try:
            info = decode_in_child(path, decoded, ANY_LENGTH, track)
        except MediaError as error:
            error.detail = f"{printable(path.name)}: {error.detail}"
            raise
        yield OwnRecording(decoded, info)


def printable(name: str | Path) -> str:
    """Return a file's name as UTF-8 can show it; names may be in another encoding."""
    return str(name).encode(errors="surrogateescape").decode(errors="replace")
