"""Writers of audio files. wav and flac keep rate, channels and length exactly; ogg, mp3, opus and m4a as closely as
their codecs allow. Imports no torch.

All formats but 32-bit float clip above 1. `AudioWriter.quantise` returns the samples that a reader of the file gets, so
that the residual can be computed from the stems as written.
"""

from __future__ import annotations

import errno
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

import av
import numpy as np
import soundfile
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from models.errors import FormatUnsupported
from models.formats import FORMATS, check_bit_depth

Block = NDArray[np.float32]

# libsndfile's Vorbis encoder puts each block on the stack.
_VORBIS_BLOCK = 4096
# RIFF counts bytes in 32 bits.
_RIFF_BYTES = 2**32 - 1
_FLAC_HEADER_BYTES = 4096
# WAVE_FORMAT_EXTENSIBLE, and what follows the format's tag in its GUIDs.
_EXTENSIBLE = 0xFFFE
_SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")


def check_format(format: str, rate: int, channels: int, bit_depth: int | None = None) -> int:
    """Check that `format` can hold such audio, and return the rate in Hz that the file will have.

    Raises FormatUnsupported for an unknown format, an unsupported bit depth or rate, or too many channels.
    """
    known = check_bit_depth(format, bit_depth)
    if not 1 <= channels <= known.channels:
        raise FormatUnsupported(f"{format} holds at most {known.channels} channels, not {channels}")
    if known.rates:
        return min(known.rates, key=lambda allowed: abs(allowed - rate))
    # A FLAC frame stores its rate in 16 bits, as Hz or as tens of Hz.
    if format == "flac" and not (rate <= 65535 or (rate % 10 == 0 and rate <= 655350)):
        raise FormatUnsupported(f"flac cannot store a sample rate of {rate} Hz; wav can")
    # libsndfile's Vorbis encoder crashes on rates far outside its tables.
    if format == "ogg":
        return min(max(rate, 8000), 192000)
    return rate


def open_writer(
    path: str | Path, format: str, rate: int, channels: int, bit_depth: int | None = None, mask: int = 0
) -> AudioWriter:
    """Open a file in `format` for writing blocks; see AudioWriter. Raises FormatUnsupported as `check_format` does.

    mask: the channels' speakers as WAVE_FORMAT_EXTENSIBLE has them, a bit for each channel; 0 if unknown; wav and flac
    keep it of more than two channels. Raises ValueError for a mask of another number of channels.
    """
    file_rate = check_format(format, rate, channels, bit_depth)
    if mask and mask.bit_count() != channels:
        raise ValueError(f"the mask {mask:#x} names {mask.bit_count()} speakers, and there are {channels} channels")
    depth = bit_depth or FORMATS[format].default_bit_depth
    path = Path(path)
    match format:
        case "wav":
            return WavWriter(path, rate, channels, depth or 32, mask)
        case "flac":
            return FlacWriter(path, rate, channels, depth or 24, mask)
        case "ogg":
            return VorbisWriter(path, rate, channels, file_rate)
        case _:
            return PacketWriter(path, format, rate, channels, file_rate)


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

    def quantise(self, block: Block) -> Block:
        """Return the samples as a reader of the file gets them: rounded and clipped to integers, clipped to 1 for lossy
        codecs (whose coding error is not included), unchanged for 32-bit float."""
        if self.bit_depth is None:
            return np.clip(block, -1.0, 1.0, dtype=np.float32)
        return (_integers(block, self.bit_depth) * np.float32(2.0 ** (1 - self.bit_depth))).astype(np.float32)

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


@contextmanager
def _beginning(path: Path) -> Iterator[ExitStack]:
    """Close what the stack holds, and delete the file, if a writer cannot begin."""
    with ExitStack() as opened:
        opened.callback(path.unlink, missing_ok=True)
        yield opened
        opened.pop_all()


def _integers(block: Block, bit_depth: int) -> NDArray[np.float32]:
    # In float32 scaling by a power of two and rounding are both exact, and 24-bit integers fit its mantissa.
    full = np.float32(2.0 ** (bit_depth - 1))
    return np.clip(np.rint(block.astype(np.float32) * full), -full, full - 1)


class WavWriter(AudioWriter):
    """RIFF WAVE of 16- or 24-bit integers or 32-bit floats; RF64 (EBU Tech 3306) once it outgrows `riff_bytes`."""

    def __init__(
        self, path: Path, rate: int, channels: int, bit_depth: int, mask: int = 0, riff_bytes: int = _RIFF_BYTES
    ) -> None:
        super().__init__(path, rate, channels)
        self.bit_depth = bit_depth
        self._mask = mask if channels > 2 else 0
        self._riff_bytes = riff_bytes
        self._bytes = 0
        with _beginning(path) as opened:
            self._file: BinaryIO = path.open("wb")
            opened.callback(self._file.close)
            self._file.write(self._header())

    def quantise(self, block: Block) -> Block:
        return block if self.bit_depth == 32 else super().quantise(block)

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            if self._bytes % 2:
                self._file.write(b"\0")
            self._file.seek(0)
            self._file.write(self._header())
        finally:
            self._file.close()

    def _append(self, block: Block) -> None:
        if self.bit_depth == 32:
            samples = np.ascontiguousarray(block.T, dtype="<f4").tobytes()
        elif self.bit_depth == 16:
            samples = _integers(block, 16).T.astype("<i2").tobytes()
        else:
            wide = np.ascontiguousarray(_integers(block, 24).T.astype("<i4"))
            samples = wide.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        self._file.write(samples)
        self._bytes += len(samples)

    def _header(self) -> bytes:
        depth = self.bit_depth or 32
        frame = self.channels * depth // 8
        tag = 3 if depth == 32 else 1
        layout = struct.pack("<HIIHH", self.channels, self.rate, self.rate * frame, frame, depth)
        if self._mask:
            guid = struct.pack("<H", tag) + _SUBFORMAT
            layout = struct.pack("<H", _EXTENSIBLE) + layout + struct.pack("<HHI", 22, depth, self._mask) + guid
        else:
            layout = struct.pack("<H", tag) + layout
        chunks = b"fmt " + struct.pack("<I", len(layout)) + layout
        # "WAVE", the 36 bytes kept for ds64, these chunks, the fact chunk and the data chunk's own header.
        whole = 4 + 36 + len(chunks) + 12 + 8 + self._bytes + self._bytes % 2
        if whole <= self._riff_bytes:
            start = b"RIFF" + struct.pack("<I", whole) + b"WAVE" + b"JUNK" + struct.pack("<I", 28) + bytes(28)
            counts = (self.frames, self._bytes)
        else:
            sizes = struct.pack("<QQQI", whole, self._bytes, self.frames, 0)
            start = b"RF64" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + b"ds64" + struct.pack("<I", 28) + sizes
            counts = (0xFFFFFFFF, 0xFFFFFFFF)
        return start + chunks + b"fact" + struct.pack("<II", 4, counts[0]) + b"data" + struct.pack("<I", counts[1])


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
        with _beginning(path) as opened:
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
                self._file.write(_integers(block, 16).T.astype(np.int16))
            else:
                # libsndfile takes integers at the top of 32 bits.
                self._file.write(_integers(block, 24).T.astype(np.int32) << 8)


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


class VorbisWriter(ResamplingWriter):
    """Ogg Vorbis, by libsndfile: PyAV's wheel has no libvorbis."""

    def __init__(self, path: Path, rate: int, channels: int, file_rate: int) -> None:
        super().__init__(path, rate, channels, file_rate)
        with _beginning(path) as opened:
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


class _Packets(NamedTuple):
    """FFmpeg's parameters for a format: muxer and its options, codec, sample format."""

    muxer: str
    options: dict[str, str]
    codec: str
    samples: str


_PACKETS = {
    "mp3": _Packets("mp3", {}, "libmp3lame", "fltp"),
    "opus": _Packets("ogg", {}, "libopus", "flt"),
    "m4a": _Packets("ipod", {"movflags": "+faststart"}, "aac", "fltp"),
}


class PacketWriter(ResamplingWriter):
    """mp3, opus and m4a, by FFmpeg. All three containers store encoder delay and padding."""

    def __init__(self, path: Path, format: str, rate: int, channels: int, file_rate: int) -> None:
        super().__init__(path, rate, channels, file_rate)
        packets = _PACKETS[format]
        options = dict(packets.options)
        if format == "m4a":
            # The edit list's unit is the movie's timescale: with the default, milliseconds, up to 22 samples are lost.
            options["movie_timescale"] = str(file_rate)
        self._layout = "mono" if channels == 1 else "stereo"
        self._samples = packets.samples
        with _beginning(path) as opened:
            self._container = av.open(f"file:{path.absolute()}", "w", format=packets.muxer, container_options=options)
            opened.callback(self._container.close)
            self._stream = cast(AudioStream, self._container.add_stream(packets.codec, rate=file_rate))
            codec = cast(AudioCodecContext, self._stream.codec_context)
            codec.layout, codec.format = AudioLayout(self._layout), AudioFormat(packets.samples)
            # 96 kbit/s a channel, less at low rates, which need less (and MPEG 2.5 allows no more).
            codec.bit_rate = channels * min(96_000, 4 * file_rate)
            codec.open()
        self._frame = codec.frame_size or 1024
        self._pending = np.zeros((channels, 0), np.float32)
        self._sent = 0
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._drain()
            if self._pending.shape[1] or not self._sent:
                self._send(self._pending)
            self._mux(None)
        finally:
            self._container.close()

    def _encode(self, block: Block) -> None:
        self._pending = np.concatenate([self._pending, block], axis=1)
        whole = self._pending.shape[1] - self._pending.shape[1] % self._frame
        for start in range(0, whole, self._frame):
            self._send(self._pending[:, start : start + self._frame])
        self._pending = self._pending[:, whole:]

    def _send(self, block: Block) -> None:
        if not block.shape[1]:
            return
        planes = block if self._samples == "fltp" else block.T.reshape(1, -1)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(planes), format=self._samples, layout=self._layout)
        frame.sample_rate = self.file_rate
        frame.pts, frame.time_base = self._sent, Fraction(1, self.file_rate)
        self._sent += block.shape[1]
        self._mux(frame)

    def _mux(self, frame: AudioFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except BaseException:
            # FFmpeg's MP4 muxer crashes if it is given more after a header that it could not write.
            self._closed = True
            self._container.close()
            raise
