"""Sections of untrusted media files: decoded from a seek point before them, where the container has reliable ones.

To be used in the sandbox, since demuxers and decoders have had vulnerabilities.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from av.audio.frame import AudioFrame
from av.error import FFmpegError

from app.media.demuxing import MediaFile

# Containers in which a seek finds the samples that decoding from the beginning does, to a millisecond: a test compares
# them. Time stamps of the others may jump, or are estimated from the bit rate.
SEEKABLE = ("wav", "w64", "flac", "mov", "matroska", "ogg", "mp3", "aiff", "caf", "au", "wv", "tta")
_PREROLL = 1.0  # seconds decoded before a section: decoders of lossy codecs need a few packets until they are exact
_LEAST_SKIP = 1.0  # seconds that are worth a seek
_HEAD_BYTES = 1 << 16  # of an Ogg file, in which its streams begin
_BEGINNING_OF_STREAM = b"OggS\0\2"


def read(path: Path, start: float, end: float, track: int | None = None) -> Iterator[tuple[int, AudioFrame]]:
    """Yield the frames that hold a section of a recording, or of a track of it, with the position of each.

    Positions count samples from the recording's beginning, as `MediaFile.frames` yields them. The first frames may
    precede the section, and the last one exceed it; all precede it if the recording ends before. start, end: seconds.
    Raises Refused, and OSError for a file that cannot be read.
    """
    with closing(_Section(path, track)) as section:
        if section.seek(start - _PREROLL):
            yield from section.until(end)
            return
    with closing(_Section(path, track)) as section:
        yield from section.until(end)


class _Section(MediaFile):
    """A media file that is read from a seek point on."""

    def __init__(self, path: Path, track: int | None) -> None:
        super().__init__(path, track)
        self._path = path
        self._first_stamp: float | None = None  # time stamp of the recording's first sample
        self._is_lost = False  # after a seek, until a time stamp tells the position
        self._frames = self.frames()
        self._ahead: deque[tuple[int, AudioFrame]] = deque()

    def until(self, end: float) -> Iterator[tuple[int, AudioFrame]]:
        """Yield positions and frames from where it is, up to the first frame that reaches `end`."""
        while (one := self._ahead.popleft() if self._ahead else self._next()) is not None:
            yield one
            position, frame = one
            if position + frame.samples >= end * frame.sample_rate:
                return

    def seek(self, seconds: float) -> bool:
        """Go to a place at or before `seconds`; return whether it has been found.

        If not, the file must be opened again.
        """
        if seconds < _LEAST_SKIP:
            return True
        # The first frame's time stamp may be that of samples which decoders leave out.
        tick = self._stream.time_base
        if not self._is_seekable() or not (self._read_ahead() and self._read_ahead()):
            return False
        if self._first_stamp is None or tick is None:
            return False
        self._ahead.clear()
        try:
            self._demuxer.seek(int((self._first_stamp + seconds) / tick), stream=self._stream)
            self._decoder.flush_buffers()
            self._is_lost = True
            self._frames = self.frames()
            if not self._read_ahead() or self._is_lost:
                return False
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            return False
        position, frame = self._ahead[0]
        return position <= seconds * frame.sample_rate

    def _is_seekable(self) -> bool:
        # The blocks of ADPCM are as many samples long as FFmpeg's time stamps of a WAV do not tell.
        if self.container not in SEEKABLE or self.codec.startswith("adpcm"):
            return False
        return self.container != "ogg" or not _is_chained(self._path)

    def _read_ahead(self) -> bool:
        one = self._next()
        if one is not None:
            self._ahead.append(one)
        return one is not None

    def _next(self) -> tuple[int, AudioFrame] | None:
        frame = next(self._frames, None)
        return None if frame is None else (self._samples - frame.samples, frame)

    def _missing(self, frame: AudioFrame) -> int:
        stamp = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        if self._is_lost:
            if stamp is not None and self._first_stamp is not None:
                self._is_lost = False
                self._samples = max(0, round((stamp - self._first_stamp) * frame.sample_rate))
            return 0
        missing = super()._missing(frame)
        if stamp is not None:
            self._first_stamp = stamp - (self._samples + missing) / frame.sample_rate
        return missing


def _is_chained(path: Path) -> bool:
    """Whether an Ogg file consists of several that were joined: time stamps begin anew in each."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_BEGINNING_OF_STREAM, _HEAD_BYTES) >= 0
