"""Writers of FLAC and Ogg Vorbis, by libsndfile."""

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile

from models.encoding.writer import AudioWriter, Block, ResamplingWriter, delete_on_failure, integers

_FLAC_HEADER_BYTES = 4096
# libsndfile's Vorbis encoder puts each block on the stack.
_VORBIS_BLOCK = 4096


class _SystemFile:
    """A file that libsndfile writes to. It keeps the system's error, such as of a full disk, which libsndfile neither
    tells nor, in the last blocks of a file, notices."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self.close, self.read = self._file.close, self._file.read
        self.seek, self.tell = self._file.seek, self._file.tell

    def write(self, content: bytes) -> int:
        """Write all of it, or keep the error."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = self._error or error
        return len(content)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise OSError if the block cannot write."""
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise self._error or OSError(errno.EIO, f"libsndfile: {error}") from error
        if self._error is not None:
            raise self._error


class FlacWriter(AudioWriter):
    """FLAC of 16 or 24 bits. A mask of more than two channels becomes the comment that FFmpeg and the reference encoder
    know: 5.1 may have its surround speakers at the sides or at the back."""

    def __init__(self, path: Path, rate: int, channels: int, bit_depth: int, mask: int = 0) -> None:
        super().__init__(path, rate, channels)
        self.bit_depth = bit_depth
        self._comment = b"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x%04X" % mask if mask and channels > 2 else b""
        # libsndfile writes no comments of other names: this one is renamed in the finished file.
        self._placeholder = b"title=".ljust(len(self._comment), b".")
        with delete_on_failure(path) as opened:
            self._written = _SystemFile(path)
            opened.callback(self._written.close)
            with self._written.errors():
                self._file = soundfile.SoundFile(
                    cast(BinaryIO, self._written), "w", rate, channels, f"PCM_{bit_depth}", format="FLAC"
                )
                opened.callback(self._file.close)
                if self._comment:
                    self._file.title = self._placeholder.removeprefix(b"title=").decode()

    def close(self) -> None:
        if self._file.closed:
            return
        with closing(self._written), self._written.errors():
            self._file.close()
        if self._comment:
            with self.path.open("r+b") as file:
                place = file.read(_FLAC_HEADER_BYTES).index(self._placeholder)
                file.seek(place)
                file.write(self._comment)

    def _append(self, block: Block) -> None:
        with self._written.errors():
            if self.bit_depth == 16:
                self._file.write(integers(block, 16).T.astype(np.int16))
            else:
                # libsndfile takes integers at the top of 32 bits.
                samples = integers(block, 24)
                samples *= np.float32(1 << 8)
                self._file.write(samples.T.astype(np.int32))


class VorbisWriter(ResamplingWriter):
    """Ogg Vorbis, by libsndfile: PyAV's wheel has no libvorbis."""

    def __init__(self, path: Path, rate: int, channels: int, file_rate: int) -> None:
        super().__init__(path, rate, channels, file_rate)
        with delete_on_failure(path) as opened:
            self._written = _SystemFile(path)
            opened.callback(self._written.close)
            with self._written.errors():
                self._file = soundfile.SoundFile(
                    *(cast(BinaryIO, self._written), "w", file_rate, channels, "VORBIS"),
                    format="OGG",
                    compression_level=0.4,
                )

    def close(self) -> None:
        if self._file.closed:
            return
        with closing(self._written), self._written.errors():
            try:
                self._drain()
            finally:
                self._file.close()

    def _encode(self, block: Block) -> None:
        samples = np.ascontiguousarray(block.T)
        with self._written.errors():
            for start in range(0, len(samples), _VORBIS_BLOCK):
                self._file.write(samples[start : start + _VORBIS_BLOCK])
