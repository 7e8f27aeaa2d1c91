"""Reading of media files, and through `models.encoding` writing: block by block, within limits. Imports no torch.

Files are untrusted. The bytes decide what a file is, among the containers and codecs listed here; the limits apply to
the decoded audio, whatever headers say; and `python -m models.media decode IN OUT` is a separate program, so that the
caller can run it in a sandbox.

Encoder delay and padding are removed where the container stores them (mp3 with a LAME tag, opus, vorbis, mp4's edit
list; matroska and bare AAC do not). Of a damaged or truncated file, what can be decoded is returned;
`MediaInfo.damaged` counts the packets left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.logging
import numpy as np
import soundfile
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Discard

from models.encoding import FORMATS, AudioWriter, Block, Format, WavWriter, check_format, content_type, open_writer
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, FormatUnsupported, MediaError

__all__ = [
    "CODECS",
    "CONTAINERS",
    "FORMATS",
    "AudioReader",
    "AudioTooLong",
    "AudioTooWide",
    "AudioUndecodable",
    "AudioWriter",
    "Format",
    "FormatUnsupported",
    "Limits",
    "MediaError",
    "MediaInfo",
    "check_format",
    "content_type",
    "decode",
    "open_audio",
    "open_writer",
]

# FFmpeg detects formats by content: without this list, an m3u8 named song.mp3 opens other files.
CONTAINERS = ("wav", "w64", "mp3", "flac", "ogg", "mov", "aac", "matroska", "aiff")
# Audio codecs only: FFmpeg would run video decoders to complete headers.
CODECS = (
    *("aac", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "eac3", "flac", "gsm_ms"),
    *("mp1float", "mp2float", "mp3float", "mp3", "opus", "vorbis", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
    *(f"pcm_{kind}{end}" for kind in ("s16", "s24", "s32", "f32", "f64") for end in ("le", "be")),
)

BLOCK_FRAMES = 65536
# An encoder pads one or two packets; if a stream is this much longer than its header says, the header is wrong.
_PADDING_PACKETS = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on recordings: seconds, channels, Hz, and samples over all channels."""

    seconds: float = 7200
    channels: int = 8
    lowest_rate: int = 8000
    highest_rate: int = 192000
    samples: float = 1.5e9

    def check(self, rate: int, channels: int, seconds: float | None) -> None:
        """Raise AudioTooWide, AudioUndecodable (for the rate) or AudioTooLong; `seconds` None is accepted."""
        if channels > self.channels:
            raise AudioTooWide(f"{channels} channels; {self.channels} are allowed")
        if not self.lowest_rate <= rate <= self.highest_rate:
            raise AudioUndecodable(
                f"a sample rate of {rate} Hz; from {self.lowest_rate} to {self.highest_rate} Hz is allowed"
            )
        if seconds is not None and seconds > self.longest(rate, channels):
            raise AudioTooLong(f"longer than the {self.longest(rate, channels):g} s allowed for such a recording")

    def longest(self, rate: int, channels: int) -> float:
        """Return the longest duration allowed at this rate and number of channels, in seconds."""
        return min(self.seconds, self.samples / (rate * channels))


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """Properties of a file. `frames` (samples a channel) and `duration` (s) are None until known; `damaged` counts
    packets that could not be decoded."""

    container: str
    codec: str
    rate: int
    channels: int
    frames: int | None = None
    duration: float | None = None
    damaged: int = 0


def open_audio(path: str | Path, limits: Limits | None = None) -> AudioReader:
    """Open the audio stream of a media file as an AudioReader.

    Raises AudioUndecodable, AudioTooLong, AudioTooWide, FileNotFoundError.
    """
    return AudioReader(Path(path), limits or Limits())


def decode(path: str | Path, target: str | Path, limits: Limits | None = None) -> MediaInfo:
    """Decode a media file to a WAV of 32-bit floats (RF64 above 4 GiB) at its own rate and channels.

    Returns its properties with the exact number of frames. Raises as `open_audio`; a failure leaves no target.
    """
    with open_audio(path, limits) as reader, WavWriter(Path(target), reader.rate, reader.channels, 32) as writer:
        for block in reader:
            writer.write(block)
    return reader.info


class AudioReader:
    """Iterator, usable once, over the blocks of a file's audio: float32 (channels, n <= 65536), full scale 1, at the
    stream's own rate and channels. A context manager.

    The first packets are decoded on opening, since headers may be wrong about rate and channels. Iterating raises
    AudioTooLong as soon as the limits are exceeded, AudioUndecodable where rate or channels change or samples are not
    finite. Afterwards `info` is exact.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        if path.stat().st_size == 0:
            raise AudioUndecodable("the file is empty")
        self._limits = limits
        self._damaged = 0
        self._container = _open_container(path)
        try:
            streams = self._container.streams
            stream = streams.best("audio")
            if not isinstance(stream, AudioStream):
                raise AudioUndecodable("the file has no audio stream that can be decoded")
            for other in streams:
                if other is not stream:
                    other.discard = Discard.all
            self._open(path, stream, alone=len(streams) == 1)
        except BaseException:
            self._container.close()
            raise

    def _open(self, path: Path, stream: AudioStream, alone: bool) -> None:
        codec: AudioCodecContext | None = stream.codec_context
        if codec is None or codec.name not in CODECS:
            raise AudioUndecodable(f"the codec {codec.name if codec else 'in it'} is not accepted")
        if codec.channels > self._limits.channels:
            self._limits.check(self._limits.lowest_rate, codec.channels, None)
        container = self._container.format.name
        whole = None
        if stream.duration is not None and stream.time_base is not None:
            whole = float(stream.duration * stream.time_base)
        codec.thread_count = 1

        vorbis = _open_vorbis(path) if container == "ogg" and codec.name == "vorbis" and alone else None
        if vorbis is not None:
            self._frames = self._vorbis(vorbis)
            self.rate, self.channels = vorbis.samplerate, vorbis.channels
        else:
            self._frames = self._decode_frames(stream)
        first = next(self._frames, None)
        if first is None:
            raise AudioUndecodable("the file holds no audio that can be decoded")
        self._first = first
        self.info = MediaInfo(
            container.split(",")[0], codec.codec.canonical_name, self.rate, self.channels, None, whole
        )
        self._limits.check(self.rate, self.channels, None if container in ("mp3", "aac") else whole)
        # FFmpeg removes the padding at the end itself, except for mp4's edit list.
        self._cut = None
        if "mp4" in container and whole:
            self._cut = round(whole * self.rate), _PADDING_PACKETS * max(codec.frame_size, first.shape[1])

    def __iter__(self) -> Iterator[Block]:
        longest = self._limits.longest(self.rate, self.channels)
        frames = 0
        for block in _blocks(_cut_padding(self._chain(), self._cut)):
            frames += block.shape[1]
            if frames > longest * self.rate:
                raise AudioTooLong(f"longer than the {longest:g} s allowed for such a recording")
            if not np.isfinite(block).all():
                raise AudioUndecodable(f"samples that are not finite before {frames / self.rate:.1f} s")
            yield block
        if not frames:
            raise AudioUndecodable("the file holds no audio that can be decoded")
        self.info = dataclasses.replace(self.info, frames=frames, duration=frames / self.rate, damaged=self._damaged)

    def _chain(self) -> Iterator[Block]:
        yield self._first
        yield from self._frames

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        self._container.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_frames(self, stream: AudioStream) -> Generator[Block, None, None]:
        """Yield the frames that FFmpeg decodes. Raises AudioUndecodable if one differs from the first in rate or
        channels."""
        began = 0
        kind: tuple[int, int] | None = None
        for frame in self._demux(stream):
            if not frame.samples:
                continue
            if kind is None:
                kind = self.rate, self.channels = frame.sample_rate, frame.layout.nb_channels
                self._limits.check(self.rate, self.channels, None)
            elif kind != (frame.sample_rate, frame.layout.nb_channels):
                raise AudioUndecodable(
                    f"the stream changes from {kind[1]} channels at {kind[0]} Hz to {frame.layout.nb_channels} at "
                    f"{frame.sample_rate} Hz, {began / kind[0]:.1f} s from the start"
                )
            began += frame.samples
            yield _as_floats(frame)

    def _vorbis(self, file: soundfile.SoundFile) -> Generator[Block, None, None]:
        with file:
            while True:
                try:
                    samples = file.read(BLOCK_FRAMES // 4, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError:
                    self._damaged += 1
                    return
                if not len(samples):
                    return
                yield np.asarray(samples.T, np.float32)

    def _demux(self, stream: AudioStream) -> Iterator[AudioFrame]:
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError:
                # A truncated file ends here.
                self._damaged += 1
                return
            try:
                yield from packet.decode()
            except FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self._damaged += 1


def _open_container(path: Path) -> InputContainer:
    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "file",
    }
    av.logging.set_level(av.logging.PANIC)
    # The prefix prevents a name such as "concat:..." from being read as a protocol.
    name = f"file:{path.absolute()}"
    try:
        try:
            return av.open(name, "r", container_options=options, metadata_errors="replace")
        except InvalidDataError:
            format = _format_of_few_packets(path)
            return av.open(name, "r", format=format, container_options=options, metadata_errors="replace")
    except FFmpegError as error:
        if isinstance(error, MemoryError | FileNotFoundError | PermissionError):
            raise
        raise AudioUndecodable("not a media file of an accepted kind") from error


def _format_of_few_packets(path: Path) -> str | None:
    """Return the format of a file too short for FFmpeg's detection, which needs several packets of mp3 or AAC."""
    with path.open("rb") as file:
        start = file.read(3)
    if start == b"ID3":
        return "mp3"
    if len(start) < 2 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    # A sync word, then MPEG's layer: ADTS leaves it at zero.
    return "mp3" if start[1] & 0x06 else "aac"


def _open_vorbis(path: Path) -> soundfile.SoundFile | None:
    """Open Ogg Vorbis by libsndfile, since FFmpeg loses or adds up to a packet of a short file; None if it cannot."""
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        return None


def _as_floats(frame: AudioFrame) -> Block:
    """Return the samples (channels, n) of a decoded frame; integers are divided by their full scale."""
    samples: np.ndarray[Any, Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        # A 64-bit number may exceed float32; the reader refuses what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) * np.float32(1 / 128)
    return samples.astype(np.float32) * np.float32(0.5 ** (8 * samples.dtype.itemsize - 1))


def _cut_padding(frames: Iterator[Block], cut: tuple[int, int] | None) -> Iterator[Block]:
    """End the stream at `cut[0]` samples if at most `cut[1]` follow; else the header is wrong, and nothing is cut."""
    if cut is None:
        yield from frames
        return
    end, padding = cut
    passed, held, beyond = 0, [], 0
    for frame in frames:
        room = max(end - passed, 0)
        if beyond <= padding and frame.shape[1] > room:
            held.append(frame[:, room:])
            beyond += frame.shape[1] - room
            frame = frame[:, :room]
        passed += frame.shape[1]
        if frame.shape[1]:
            yield frame
        if beyond > padding and held:
            yield from held
            held = []


def _blocks(frames: Iterator[Block]) -> Iterator[Block]:
    """Yield the same samples in blocks of BLOCK_FRAMES; the last may be shorter."""
    held: list[Block] = []
    count = 0
    for frame in frames:
        held.append(frame)
        count += frame.shape[1]
        if count < BLOCK_FRAMES:
            continue
        joined = np.concatenate(held, axis=1)
        whole = count - count % BLOCK_FRAMES
        for start in range(0, whole, BLOCK_FRAMES):
            yield joined[:, start : start + BLOCK_FRAMES]
        held, count = [joined[:, whole:]], count - whole
    if count:
        yield np.concatenate(held, axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m models.media decode IN OUT [--limits JSON]`: print one line of JSON, {"ok": {...}} or
    {"error": {"code", "detail"}}, and return 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m models.media", description="Decode a media file to float WAV.")
    parser.add_argument("command", choices=["decode"])
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--limits", default="{}", help="JSON object: seconds, channels, lowest_rate, ...")
    given = parser.parse_args(arguments)
    try:
        limits = Limits(**json.loads(given.limits))
    except (TypeError, ValueError) as error:
        parser.error(f"--limits: {error}")
    try:
        answer = {"ok": dataclasses.asdict(decode(given.source, given.target, limits))}
    except MediaError as error:
        answer = {"error": {"code": error.code, "detail": error.detail}}
    except MemoryError:
        answer = {"error": {"code": AudioUndecodable.code, "detail": "decoding needs more memory than allowed"}}
    except OSError as error:
        if error.errno == errno.EFBIG:
            answer = {"error": {"code": AudioTooLong.code, "detail": "the decoded recording is larger than allowed"}}
        else:
            sys.stderr.write(f"python -m models.media: {error.strerror}\n")
            return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if "ok" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
