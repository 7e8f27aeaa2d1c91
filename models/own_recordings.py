"""Recordings that a command is given: decoded in a child process, since a file may crash FFmpeg, and of any length."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch

from models.audio import Waveform, require_inside
from models.errors import AudioTooLong, MediaError
from models.media import ANY_LENGTH, MediaInfo, decode_in_child

LONGEST_EXAMPLE = 600.0  # seconds of an example, which is held in memory; few of them make the best query


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
        """Return the whole recording as an example. Raises AudioTooLong."""
        _require_short(self.info.duration or 0.0, "an example")
        return self._read(0, None)

    def span(self, start: float, end: float) -> Waveform:
        """Return a part, in seconds, as an example. Raises SpanOutside, AudioTooLong."""
        require_inside(start, end, self.info.duration or 0.0)
        _require_short(end - start, "a span")
        return self._read(round(start * self.info.rate), round(end * self.info.rate))

    def _read(self, start: int, stop: int | None) -> Waveform:
        name: Any = os.fsencode(self.path)  # libsndfile takes names in any encoding, as bytes
        samples, rate = soundfile.read(name, start=start, stop=stop, dtype="float32", always_2d=True)
        return Waveform(torch.from_numpy(samples.T).contiguous(), rate)


@contextmanager
def open_recording(path: Path, track: int | None = None, near: Path | None = None) -> Iterator[OwnRecording]:
    """Decode a file into a temporary folder, by default in the system's, else in `near`, or in the nearest folder above
    it that exists: on the same disk. The folder is removed however the context ends, by SIGTERM or SIGHUP too.

    Raises MediaError, whose detail begins with the file's name; OSError for an error of this machine.
    """
    place = None if near is None else near.absolute()
    folder = None if place is None else next(each for each in (place, *place.parents) if each.is_dir())
    with (
        end_by_exception(),
        # What is left in the folder must not hide the error.
        tempfile.TemporaryDirectory(prefix=".decoded-", dir=folder, ignore_cleanup_errors=True) as private,
    ):
        decoded = Path(private) / "recording.wav"
        try:
            info = decode_in_child(path, decoded, ANY_LENGTH, track)
        except MediaError as error:
            error.detail = f"{printable(path.name)}: {error.detail}"
            raise
        yield OwnRecording(decoded, info)


def _require_short(seconds: float, what: str) -> None:
    if seconds > LONGEST_EXAMPLE:
        raise AudioTooLong(f"{what} may last {LONGEST_EXAMPLE:g} s, not {seconds:.1f} s: choose a part with --span")


@contextmanager
def end_by_exception(signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """Raise SystemExit at signals that would end the process without cleaning up; ignored ones (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {each: signal.getsignal(each) for each in signals if signal.getsignal(each) != signal.SIG_IGN}
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def printable(name: str | Path) -> str:
    """Return a file's name as UTF-8 can show it; names may be in another encoding."""
    return str(name).encode(errors="surrogateescape").decode(errors="replace")
