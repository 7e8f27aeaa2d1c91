"""Reading of audio files as mono int16 at 32 kHz, block by block. Imports no torch: processes that decode start in a
blink.

The downmix is that of `models.audio.mono`, decided over the whole recording (or its labelled segment): the mean of the
channels, or the loudest one if the mean cancels. Files with several channels are therefore read twice.
"""

import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from models.corpus.clips import RATE
from models.corpus.sources.recordings import Samples, Unusable
from models.errors import MediaError
from models.media import AudioReader, open_audio
from models.media.conversion import CANCELLATION, Block, BlockResampler

Damaged = Callable[[str], None]

# How much longer than its segment a file may be to be taken for the segment itself: cutting may round to key frames.
SEGMENT_SLACK = 1.0  # seconds


@dataclass(frozen=True)
class Segment:
    """The labelled part of a recording, in seconds; `cut`: by its name, the file holds that part only."""

    start: float
    end: float
    cut: bool = False


@dataclass(frozen=True)
class FileAudio:
    """An audio file, or its labelled segment.

    A file more than SEGMENT_SLACK longer than its segment is the whole recording and is cut to start..end; any other
    file is taken for the segment itself.
    """

    path: Path
    segment: Segment | None = None

    def blocks(self, damaged: Damaged) -> Iterator[Samples]:
        try:
            with open_audio(self.path) as reader:
                rate, channels = reader.rate, reader.channels
                whole = reader.info.duration
            start, end = self._span(whole)

            def play(report: Damaged) -> Iterator[Block]:
                with open_audio(self.path) as reader:
                    yield from _span(reader, start, end, reader.rate)
                    if reader.info.damaged:
                        report(f"{reader.info.damaged} packets left out")

            yield from as_samples(play, rate, channels, damaged)
        except FileNotFoundError as error:
            raise Unusable("missing file", self.path.name) from error
        except MediaError as error:
            raise Unusable("undecodable", error.detail) from error

    def _span(self, whole: float | None) -> tuple[float, float]:
        if self.segment is None:
            return 0.0, inf
        length = self.segment.end - self.segment.start
        if self.segment.cut:
            return 0.0, length
        whole = self._count_seconds() if whole is None else whole
        if whole <= length + SEGMENT_SLACK:
            return 0.0, length
        if self.segment.start >= whole:
            raise Unusable("segment outside the file", f"from {self.segment.start:g} s, of {whole:.1f} s")
        return self.segment.start, self.segment.end

    def _count_seconds(self) -> float:
        """Decode the file and return its length in seconds, for containers that do not store it."""
        with open_audio(self.path) as reader:
            return sum(block.shape[1] for block in reader) / reader.rate


@dataclass(frozen=True)
class MemberAudio:
    """An audio file inside a tar, by its offset and size."""

    path: Path
    offset: int
    size: int

    def blocks(self, damaged: Damaged) -> Iterator[Samples]:
        with tempfile.NamedTemporaryFile() as copy:
            with self.path.open("rb") as tar:
                tar.seek(self.offset)
                copy.write(tar.read(self.size))
            copy.flush()
            yield from FileAudio(Path(copy.name)).blocks(damaged)

    @classmethod
    def of(cls, path: Path, member: tarfile.TarInfo) -> "MemberAudio":
        return cls(path, member.offset_data, member.size)


@dataclass(frozen=True)
class StreamAudio:
    """One audio stream of a file with several: a stem of an `.stem.mp4`."""

    path: Path
    stream: int

    def blocks(self, damaged: Damaged) -> Iterator[Samples]:
        try:
            with av.open(f"file:{self.path.absolute()}", "r") as container:
                count = len(container.streams.audio)
                if self.stream >= count:
                    raise Unusable("missing stem", f"stream {self.stream} of {count}")
                stream = container.streams.audio[self.stream]
                rate, channels = stream.rate, stream.channels

            def play(_: Damaged) -> Iterator[Block]:
                with av.open(f"file:{self.path.absolute()}", "r") as container:
                    floats = av.AudioResampler(format="fltp")
                    for frame in container.decode(audio=self.stream):
                        for converted in floats.resample(frame):
                            yield np.asarray(converted.to_ndarray(), np.float32)

            yield from as_samples(play, rate, channels, damaged)
        except FileNotFoundError as error:
            raise Unusable("missing file", self.path.name) from error
        except FFmpegError as error:
            raise Unusable("undecodable", str(error)) from error


def as_samples(
    play: Callable[[Damaged], Iterator[Block]], rate: int, channels: int, damaged: Damaged
) -> Iterator[Samples]:
    """Float blocks (channels, n) at `rate` Hz -> int16 (n,) at 32 kHz; `play` begins from the start each time."""
    weights = _downmix(play(_ignore)) if channels > 1 else np.ones(1, np.float32)
    resampler = BlockResampler(rate, RATE, 1)
    for block in play(damaged):
        yield _as_int16(resampler.feed((weights @ block)[None])[0])
    yield _as_int16(resampler.feed(np.zeros((1, 0), np.float32), last=True)[0])


def pieces(blocks: Iterator[Samples], frames: int) -> Iterator[Samples]:
    """Join blocks and cut them into pieces of `frames` samples; the last one may be shorter."""
    held: list[Samples] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count >= frames:
            joined = np.concatenate(held)
            yield joined[:frames]
            held, count = [joined[frames:]], count - frames
    if count:
        yield np.concatenate(held)


def _span(reader: AudioReader, start: float, end: float, rate: int) -> Iterator[Block]:
    first = round(start * rate)
    last = None if end == inf else round(end * rate)
    passed = 0
    for block in reader:
        part = block[:, max(first - passed, 0) : None if last is None else max(last - passed, 0)]
        passed += block.shape[1]
        if part.shape[1]:
            yield part
        if last is not None and passed >= last:
            return


def _downmix(blocks: Iterator[Block]) -> NDArray[np.float32]:
    """Return the weight of each channel, as `models.audio.mono` chooses it, for all blocks together."""
    mean_power, powers = 0.0, np.zeros(1)
    channels = 1
    for block in blocks:
        channels = block.shape[0]
        powers = powers + np.square(block, dtype=np.float64).sum(axis=1)
        mean_power += float(np.square(block.mean(axis=0), dtype=np.float64).sum())
    weights = np.full(channels, 1 / channels, np.float32)
    if mean_power <= CANCELLATION * powers.max():
        weights[:] = np.arange(channels) == powers.argmax()
    return weights


def _as_int16(samples: NDArray[np.float32]) -> Samples:
    return (samples * 32768).round().clip(-32768, 32767).astype(np.int16)


def _ignore(_: str) -> None:
    """Ignore damage in the first of two readings: the second reports it."""
