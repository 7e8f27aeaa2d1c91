"""Ogg Vorbis by libsndfile, since FFmpeg loses or adds up to a packet of a short file; all links of a chain, with the
channels in the order of WAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

Block = NDArray[np.float32]

_BLOCK_FRAMES = 16384
_PAGE_HEADER = 27
_FIRST_PAGE = 2  # flag of the page that begins a logical stream
_RATE, _BLOCK_SIZES = 40, 56  # places in that page
_LEAST_GAP = 0.05  # seconds
# Vorbis I section 4.3.9, as indices of Vorbis's channels in the order of WAVE_FORMAT_EXTENSIBLE.
_WAV_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}
# The speakers of 3.0, 4.0, 5.0, 5.1, 6.1 and 7.1.
_MASKS = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
_LAYOUTS = ("", "mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")


class VorbisFile:
    """A file of one or more links, each a Vorbis stream; rate and channels are the first one's, and others are
    converted to them. `damaged`: links not read to their end. `has_gap`: time stamps jump, over which libsndfile reads.
    Raises soundfile.LibsndfileError for any other file."""

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self.warnings: list[str] = []
        self._file = path.open("rb")
        try:
            self._links, self.has_gap = _find_links(self._file)
            with self._open(0) as first:
                self.rate, self.channels = first.samplerate, first.channels
                self.mask = _MASKS.get(self.channels, 0)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def blocks(self) -> Iterator[Block]:
        """Yield float32 (channels, n), full scale 1."""
        passed = 0
        for index in range(len(self._links)):
            try:
                file = self._open(index)
            except soundfile.LibsndfileError:
                self._warn(f"Part {index + 1} of the file, from {passed / self.rate:.1f} s on, cannot be decoded.")
                continue
            with file:
                if index and max(file.channels, self.channels) >= len(_LAYOUTS) and not self._is_alike(file):
                    self._warn(
                        f"Part {index + 1} of the file, from {passed / self.rate:.1f} s on, is left out: its "
                        f"{file.channels} channels cannot be converted to {self.channels}."
                    )
                    continue
                begin, read = passed, 0
                convert = self._converter(file, passed)
                try:
                    while len(samples := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                        read += len(samples)
                        block = convert(np.asarray(samples.T, np.float32))
                        passed += block.shape[1]
                        yield block
                    block = convert(None)
                    passed += block.shape[1]
                    yield block
                except soundfile.LibsndfileError:
                    read = min(read, file.frames - 1)
                if read < file.frames:
                    missing = (file.frames - read) / file.samplerate
                    self._warn(
                        f"{missing:.2f} s are missing from what begins at {begin / self.rate:.1f} s: the file is "
                        "damaged, and what follows is early by as much."
                    )

    def _warn(self, sentence: str) -> None:
        self.damaged += 1
        self.warnings.append(sentence)

    def _open(self, index: int) -> soundfile.SoundFile:
        link: Any = _Link(self._file, *self._links[index])
        return soundfile.SoundFile(link)

    def _is_alike(self, file: soundfile.SoundFile) -> bool:
        return (file.samplerate, file.channels) == (self.rate, self.channels)

    def _converter(self, file: soundfile.SoundFile, passed: int) -> Callable[[Block | None], Block]:
        """Return a function of a block, and of None at the end, that gives the file's channels and rate."""
        order = list(_WAV_ORDER.get(file.channels, range(file.channels)))
        nothing = np.zeros((self.channels, 0), np.float32)
        if self._is_alike(file):
            return lambda block: nothing if block is None else block[order]
        rate, layout = file.samplerate, _LAYOUTS[file.channels]
        self.warnings.append(
            f"From {passed / self.rate:.1f} s on the recording has {file.channels} channels at {rate} Hz, which are "
            f"converted to {self.channels} at {self.rate} Hz."
        )
        resampler = AudioResampler(format="flt", layout=_LAYOUTS[self.channels], rate=self.rate)

        def convert(block: Block | None) -> Block:
            frame = None
            if block is not None:
                samples = np.ascontiguousarray(block[order].T).reshape(1, -1)
                frame = AudioFrame.from_ndarray(samples, format="flt", layout=layout)
                frame.sample_rate = rate
            found = [part.to_ndarray().reshape(-1, self.channels).T for part in resampler.resample(frame)]
            return np.concatenate([nothing, *found], axis=1, dtype=np.float32)

        return convert


class _Link(io.RawIOBase):
    """A part of a file, [start, end), as a file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._end, self._place = file, start, end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._place)
        content = self._file.read(min(len(buffer), max(self._end - self._start - self._place, 0)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end - self._start}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def tell(self) -> int:
        return self._place


class _Clock:
    """The time stamps of a link's pages."""

    def __init__(self) -> None:
        self._stamp: int | None = None
        self._longest = self._least_gap = 0

    def jumps(self, page: bytes) -> bool:
        """Whether more time passes until a page's end than the packets that end in it can last."""
        if page[5] & _FIRST_PAGE and len(page) > _BLOCK_SIZES:
            # Two blocks overlap by half of the shorter one: a packet adds at most half of the longer size.
            self._stamp, self._longest = None, 1 << (page[_BLOCK_SIZES] >> 4) >> 1
            self._least_gap = round(int.from_bytes(page[_RATE : _RATE + 4], "little") * _LEAST_GAP)
            return False
        stamp = int.from_bytes(page[6:14], "little", signed=True)
        packets = sum(size < 255 for size in page[_PAGE_HEADER : _PAGE_HEADER + page[26]])
        # Pages of headers are stamped 0, and those in which no packet ends -1.
        if stamp <= 0 or not packets:
            return False
        before, self._stamp = self._stamp, stamp
        return before is not None and stamp - before > packets * self._longest + self._least_gap


def _find_links(file: BinaryIO) -> tuple[list[tuple[int, int]], bool]:
    """Return the byte ranges of a chain's links, and whether time stamps jump in one. A link begins at a first page
    that follows another kind of page."""
    size = file.seek(0, io.SEEK_END)
    starts, place, follows_first = [0], 0, True
    clock, has_gap = _Clock(), False
    while place + _PAGE_HEADER <= size:
        file.seek(place)
        header = file.read(_PAGE_HEADER + 255)
        if header[:4] != b"OggS":
            # Damage: go on at the next page.
            found = header.find(b"OggS", 1)
            place += found if found > 0 else len(header) - 3
            continue
        is_first = bool(header[5] & _FIRST_PAGE)
        if is_first and not follows_first:
            starts.append(place)
        follows_first = is_first
        has_gap = clock.jumps(header) or has_gap
        place += _PAGE_HEADER + header[26] + sum(header[_PAGE_HEADER : _PAGE_HEADER + header[26]])
    return list(zip(starts, [*starts[1:], size], strict=True)), has_gap
