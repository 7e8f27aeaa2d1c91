"""Waveforms of recordings, for drawing them: the least and the greatest sample of each stretch, channel by channel.

`draw` runs `python -m app.media.waveform PATH SAMPLES`, a child process under limits, which decodes the whole
recording, stretch by stretch, and lets FFmpeg's `astats` find the two. Stretches are as short as keeps their number
below `STRETCHES`: when it is reached, neighbours are joined, so that memory does not grow with the length.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AudioTooLong, AudioUndecodable
from app.media.probe import open_audio
from app.media.sandbox import SandboxLimits, python, run_async

if TYPE_CHECKING:
    from app.settings import Settings

MAX_STRETCHES = 16384  # there are half as many at least, if the recording has so many samples
_HEADER = struct.Struct("<IQII")  # rate, samples a channel, samples a stretch, channels
_FIRST_STRETCH = 1024  # samples, where the headers tell no length
_TOO_LONG = "too long"
# Two hours of stereo take ten seconds; a slow codec on a slow machine still passes.
_CHILD_LIMITS = SandboxLimits(
    seconds=120, cpu_seconds=120, memory_bytes=1 << 30, file_bytes=0, output_bytes=16 * MAX_STRETCHES * 64
)


@dataclass(frozen=True)
class Waveform:
    """`least` and `greatest` hold a float a stretch of `stretch` samples for each channel; full scale is 1.

    `sample_rate` in hertz, `samples` of one channel.
    """

    sample_rate: int
    samples: int
    stretch: int
    least: list[array[float]]
    greatest: list[array[float]]

    def to_bytes(self) -> bytes:
        """As it is kept: a header, then all `least`, then all `greatest`, as little-endian floats of 32 bits."""
        header = _HEADER.pack(self.sample_rate, self.samples, self.stretch, len(self.least))
        return header + b"".join(_little(line).tobytes() for line in [*self.least, *self.greatest])

    @classmethod
    def from_bytes(cls, kept: bytes) -> Waveform:
        """The outline that was kept so; raises ValueError for anything else."""
        try:
            rate, samples, stretch, channels = _HEADER.unpack_from(kept)
            count = -(-samples // stretch)
            if len(kept) != _HEADER.size + 8 * count * channels or not count * channels:
                raise ValueError("an outline of another length")
        except (struct.error, ZeroDivisionError) as error:
            raise ValueError("no outline") from error
        lines = []
        for start in range(_HEADER.size, len(kept), 4 * count):
            lines.append(_little(array("f", kept[start : start + 4 * count])))
        return cls(rate, samples, stretch, lines[:channels], lines[channels:])

    def points(self, most: int) -> Iterator[tuple[list[float], list[float]]]:
        """For each channel (least, greatest) in at most so many points, each of nearly the same number of stretches."""
        stretches = len(self.least[0])
        count = min(most, stretches)
        bounds = [stretches * point // count for point in range(count + 1)]
        spans = list(pairwise(bounds))
        for least, greatest in zip(self.least, self.greatest, strict=True):
            yield [min(least[a:b]) for a, b in spans], [max(greatest[a:b]) for a, b in spans]


async def compute(path: Path, settings: Settings) -> Waveform:
    """The outline of the recording at `path`.

    Raises AudioUndecodable, also when decoding takes too long, and AudioTooLong.
    """
    most = min(settings.recording_samples, settings.recording_seconds * settings.highest_rate * settings.channels)
    program = python("app.media.waveform", str(path.absolute()), str(int(most)))
    outcome = await run_async(program, _CHILD_LIMITS)
    if outcome.status == "timed_out":
        raise AudioUndecodable("The recording takes too long to decode.")
    try:
        if outcome.succeeded:
            return Waveform.from_bytes(outcome.output)
        refused = json.loads(outcome.output)["refused"] if outcome.returncode == 1 else ""
    except (ValueError, KeyError, TypeError):
        refused = ""
    if refused == _TOO_LONG:
        raise AudioTooLong("The recording is longer than is allowed.")
    raise AudioUndecodable(refused or "The recording cannot be decoded safely.")


class _WaveformBuilder:
    """The outline while it grows."""

    def __init__(self, channels: int, stretch: int) -> None:
        self.stretch = stretch
        self.samples = 0
        self.least = [array("f") for _ in range(channels)]
        self.greatest = [array("f") for _ in range(channels)]
        self._joined = 1  # stretches of `asetnsamples` in one of ours
        self._began = 0  # of them in the last one

    def add(self, samples: int, levels: dict[str, str]) -> None:
        """The next stretch of the filter's, of which only the last is shorter."""
        begins = self._began == 0
        for number, (least, greatest) in enumerate(zip(self.least, self.greatest, strict=True), start=1):
            low = _level(levels[f"lavfi.astats.{number}.Min_level"])
            high = _level(levels[f"lavfi.astats.{number}.Max_level"])
            if begins:
                least.append(low)
                greatest.append(high)
            else:
                least[-1], greatest[-1] = min(least[-1], low), max(greatest[-1], high)
        self.samples += samples
        self._began = (self._began + 1) % self._joined
        if len(self.least[0]) == MAX_STRETCHES and self._began == 0:
            self._join()

    def _join(self) -> None:
        for lines, extreme in ((self.least, min), (self.greatest, max)):
            for number, line in enumerate(lines):
                lines[number] = array("f", map(extreme, line[::2], line[1::2]))
        self._joined *= 2
        self.stretch *= 2


def read(path: Path, most: int) -> Waveform:
    """The outline of at most so many samples (of all channels together), in this process: for the child.

    Raises ValueError with a sentence for the client.
    """
    from av.error import FFmpegError

    with open_audio(path) as (container, stream, _):
        graph: Any = None
        lines: _WaveformBuilder | None = None
        kind: tuple[int, int, str] | None = None
        rate = 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                now = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
                if kind is None:
                    kind, rate = now, frame.sample_rate
                    known = stream.duration and stream.time_base and int(stream.duration * stream.time_base * rate)
                    stretch = max(1, min(known, most) // (MAX_STRETCHES // 2)) if known else _FIRST_STRETCH
                    lines, graph = _WaveformBuilder(now[1], stretch), _graph(frame, stretch)
                if now != kind or lines is None:
                    raise ValueError("The recording changes its kind on the way.")
                frame.pts = None
                graph.push(frame)
                _pull(graph, lines)
                if lines.samples * now[1] > most:
                    raise ValueError(_TOO_LONG)
        if lines is None:
            raise ValueError("The file holds no audio that can be decoded.")
        graph.push(None)
        _pull(graph, lines)
    return Waveform(rate, lines.samples, lines.stretch, lines.least, lines.greatest)


def _graph(frame: Any, stretch: int) -> Any:
    from av.filter import Graph

    graph = Graph()
    rate = frame.sample_rate
    source = graph.add_abuffer(
        sample_rate=rate, format=frame.format.name, layout=frame.layout.name, time_base=Fraction(1, rate)
    )
    steps = [
        source,
        graph.add("aformat", "sample_fmts=fltp"),
        graph.add("asetnsamples", f"n={stretch}:p=0"),
        graph.add("astats", "metadata=1:reset=1:measure_perchannel=Min_level+Max_level:measure_overall=none"),
        graph.add("abuffersink"),
    ]
    for one, other in pairwise(steps):
        one.link_to(other)
    graph.configure()
    return graph


def _pull(graph: Any, lines: _WaveformBuilder) -> None:
    from av.error import BlockingIOError, EOFError

    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        lines.add(frame.samples, frame.metadata)


def _level(text: str) -> float:
    """A level of `astats`; what is no number, or beyond a float of 32 bits, counts as silence."""
    level = float(text)
    return level if math.isfinite(level) and abs(level) < 3e38 else 0.0


def _little(line: array[float]) -> array[float]:
    if sys.byteorder == "big":
        line = array("f", line)
        line.byteswap()
    return line


def main(arguments: list[str]) -> int:
    """`python -m app.media.waveform PATH SAMPLES`: an Outline's bytes (exit 0) or {"refused": detail} (exit 1)."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m app.media.waveform PATH SAMPLES\n")
        return 2
    try:
        answer, code = read(Path(arguments[0]).absolute(), int(arguments[1])).to_bytes(), 0
    except (ValueError, OSError, MemoryError) as error:
        detail = str(error) if type(error) is ValueError else "The file cannot be read."
        answer, code = json.dumps({"refused": detail}).encode(), 1
    sys.stdout.buffer.write(answer)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
