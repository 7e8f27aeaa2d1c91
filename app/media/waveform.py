"""Waveform of a recording: decodes it to the minimum and maximum sample (peaks) of each bin and channel.

A bin is a number of consecutive samples. `compute` runs `python -m app.media.waveform` in the sandbox, which decodes
the recording, or a section of it, bin by bin. Short bins are searched here, long ones by FFmpeg's `astats`. When the
number of bins reaches `MAX_BINS`, neighbours are merged, so that memory does not grow with the recording's length.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import SpanOutside
from app.media import decoder_process, priority
from app.media.input_formats import EXACT_DURATION
from app.media.probe import MEMORY_BYTES
from app.media.sandbox import SandboxLimits

if TYPE_CHECKING:
    from app.settings import Settings

MAX_BINS = 16384  # a recording with enough samples has at least half as many
_HEADER = struct.Struct("<IQII")  # sample rate, samples per channel, samples per bin, channels
_LEAST_BIN_SIZE = 16  # samples, if the headers may be wrong about the length: smaller bins are costly
_INITIAL_BIN_SIZE = 1024  # samples, if the headers do not tell the length
# Samples of a block, up to which it is searched here: 0.08 us a sample, where `astats` takes 50 us for any block.
_SHORT_BLOCK = 256
# Samples of a block, up to which many blocks are faster searched together: their first samples, their second ones, ...
_FEW_SAMPLES = 16
_SAMPLES_OF_BLOCKS = 8192  # per channel, of short blocks that are taken from FFmpeg together
_MAX_LEVEL = 3e38  # what exceeds a 32-bit float may be infinite
# Six hours of stereo take half a minute; a slow codec on a slow machine passes.
SANDBOX_LIMITS = SandboxLimits(
    seconds=360,
    cpu_seconds=360,
    memory_bytes=MEMORY_BYTES,
    file_bytes=0,
    output_bytes=16 * MAX_BINS * 64,
    niceness=priority.NICENESS,
)


@dataclass(frozen=True)
class Waveform:
    """Minima and maxima of each channel, a float per bin; full scale is 1.

    `sample_rate` in hertz; `samples` per channel; `bin_size` in samples, of which the last bin may have fewer.
    """

    sample_rate: int
    samples: int
    bin_size: int
    minima: list[array[float]]
    maxima: list[array[float]]

    def to_bytes(self) -> bytes:
        """Return the stored form: a header, all minima, all maxima, as little-endian 32-bit floats."""
        header = _HEADER.pack(self.sample_rate, self.samples, self.bin_size, len(self.minima))
        return header + b"".join(_to_little_endian(levels).tobytes() for levels in [*self.minima, *self.maxima])

    @classmethod
    def from_bytes(cls, content: bytes) -> Waveform:
        """Return the waveform that `to_bytes` serialized. Raises ValueError for any other content."""
        try:
            rate, samples, bin_size, channels = _HEADER.unpack_from(content)
            bins = -(-samples // bin_size)
            if len(content) != _HEADER.size + 8 * bins * channels or not bins * channels:
                raise ValueError("not a waveform: its length differs from its header's")
        except (struct.error, ZeroDivisionError) as error:
            raise ValueError("not a waveform") from error
        levels = []
        for start in range(_HEADER.size, len(content), 4 * bins):
            levels.append(_to_little_endian(array("f", content[start : start + 4 * bins])))
        return cls(rate, samples, bin_size, levels[:channels], levels[channels:])

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.sample_rate

    def crop(self, start: float, end: float) -> tuple[float, Waveform]:
        """Return the second at which the first bin of a section begins, and the bins that hold the section.

        Raises SpanOutside if it begins behind the last sample.
        """
        first, last = math.floor(start * self.sample_rate), math.ceil(min(end, self.seconds) * self.sample_rate)
        if first >= self.samples:
            raise SpanOutside("The recording ends before the section.")
        bins = slice(first // self.bin_size, -(-last // self.bin_size))
        position = bins.start * self.bin_size
        samples = min(bins.stop * self.bin_size, self.samples) - position
        minima, maxima = ([levels[bins] for levels in extremes] for extremes in (self.minima, self.maxima))
        return position / self.sample_rate, Waveform(self.sample_rate, samples, self.bin_size, minima, maxima)

    def points(self, limit: int) -> Iterator[tuple[list[float], list[float]]]:
        """Yield (minima, maxima) of each channel in at most `limit` points, each of nearly as many bins."""
        bins = len(self.minima[0])
        count = min(limit, bins)
        bounds = [bins * point // count for point in range(count + 1)]
        spans = list(pairwise(bounds))
        for minima, maxima in zip(self.minima, self.maxima, strict=True):
            yield [min(minima[a:b]) for a, b in spans], [max(maxima[a:b]) for a, b in spans]


async def compute(
    path: Path,
    settings: Settings,
    limits: SandboxLimits = SANDBOX_LIMITS,
    track: int | None = None,
    section: tuple[float, float] | None = None,
) -> Waveform:
    """Return the waveform of the recording at `path`, decoded in the sandbox within `limits`.

    track: counted from 1, by default the first that can be read. section: start and end in seconds.
    Raises AudioUndecodable, also if decoding takes too long; AudioTooLong; SpanOutside, if the recording ends before
    the section.
    """
    numbers = (settings.recording_seconds, int(settings.recording_samples), track or 0, *(section or ()))
    return await decoder_process.run("app.media.waveform", path, numbers, limits, Waveform.from_bytes)


class WaveformBuilder:
    """A waveform that grows by blocks of `block_size` samples, in at most `max_bins` bins (an even number).

    A bin is one block at first; whenever there are `max_bins` bins, neighbours are merged.
    """

    def __init__(self, sample_rate: int, channels: int, block_size: int, max_bins: int = MAX_BINS) -> None:
        self.samples = 0
        self._sample_rate = sample_rate
        self._block_size = block_size
        self._max_bins = max_bins
        self._minima = [array("f") for _ in range(channels)]
        self._maxima = [array("f") for _ in range(channels)]
        self._blocks_per_bin = 1
        self._blocks_in_last_bin = 0  # 0: the last bin is full

    def add(self, samples: int, minima: Iterable[float], maxima: Iterable[float]) -> None:
        """Add the next block, its extremes by channel; only the last block may be shorter than the others."""
        starts_bin = self._blocks_in_last_bin == 0
        for channels, levels, extreme in ((self._minima, minima, min), (self._maxima, maxima, max)):
            for bins, level in zip(channels, levels, strict=True):
                if starts_bin:
                    bins.append(level)
                else:
                    bins[-1] = extreme(bins[-1], level)
        self.samples += samples
        self._blocks_in_last_bin = (self._blocks_in_last_bin + 1) % self._blocks_per_bin
        if len(self._minima[0]) == self._max_bins and self._blocks_in_last_bin == 0:
            self._merge_neighbours()

    def extend(self, frames: Iterable[Any]) -> None:
        """Add the blocks that the graph of `_filters` yields."""
        channels = range(1, len(self._minima) + 1)
        for frame in frames:
            if self._block_size <= _SHORT_BLOCK:
                self._add_short([_extremes(samples, self._block_size) for samples in _split(frame)], frame.samples)
                continue
            minima, maxima = (
                [_parse_level(frame.metadata[f"lavfi.astats.{channel}.{name}_level"]) for channel in channels]
                for name in ("Min", "Max")
            )
            self.add(frame.samples, minima, maxima)

    def build(self) -> Waveform:
        """Return the waveform of all blocks so far."""
        bin_size = self._block_size * self._blocks_per_bin
        return Waveform(self._sample_rate, self.samples, bin_size, self._minima, self._maxima)

    def _add_short(self, extremes: list[tuple[array[float], array[float]]], samples: int) -> None:
        """Add many blocks, the minima and maxima of each channel; samples: per channel, of all of them."""
        minima, maxima = zip(*extremes, strict=True)
        blocks = len(minima[0])
        if self._blocks_per_bin == 1 and len(self._minima[0]) + blocks < self._max_bins:
            for bins, levels in zip((self._minima, self._maxima), (minima, maxima), strict=True):
                for channel, added in zip(bins, levels, strict=True):
                    channel.extend(added)
            self.samples += samples
            return
        for block in range(blocks):
            size = min(self._block_size, samples - block * self._block_size)
            self.add(size, [levels[block] for levels in minima], [levels[block] for levels in maxima])

    def _merge_neighbours(self) -> None:
        for channels, extreme in ((self._minima, min), (self._maxima, max)):
            for index, levels in enumerate(channels):
                channels[index] = array("f", map(extreme, levels[::2], levels[1::2]))
        self._blocks_per_bin *= 2


def read(path: Path, max_seconds: float, max_samples: int, track: int | None = None) -> Waveform:
    """Return the waveform of a recording, or of a track of it, decoded in this process: to be called in the sandbox.

    Raises Refused with a sentence for the client, also as soon as the recording turns out to be longer than
    `max_seconds`, or to have more than `max_samples` samples, of all channels together.
    """
    from app.media.demuxing import MediaFile  # the front end itself loads no decoder
    from app.media.filter_graph import FilterGraph
    from app.media.opening import Refused

    with MediaFile(path, track) as media:
        graph: FilterGraph | None = None
        builder: WaveformBuilder | None = None
        longest = samples = 0  # per channel
        for frame in media.frames():
            if builder is None or graph is None:
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                longest = min(int(max_seconds * rate), max_samples // channels)
                length = int(media.duration * rate) if media.duration else 0
                least = 1 if media.container in EXACT_DURATION else _LEAST_BIN_SIZE
                block_size = max(least, min(length, longest) // (MAX_BINS // 2)) if length else _INITIAL_BIN_SIZE
                builder, graph = WaveformBuilder(rate, channels, block_size), FilterGraph(frame, _filters(block_size))
            samples += frame.samples
            if samples > longest:
                raise Refused(decoder_process.TOO_LONG)
            builder.extend(graph.filter(frame))
        if builder is None or graph is None:
            raise Refused(decoder_process.NO_AUDIO)
        builder.extend(graph.finish())
    return builder.build()


def read_section(path: Path, start: float, end: float, track: int | None = None) -> Waveform:
    """Return the waveform of a section in seconds, decoded in this process: to be called in the sandbox.

    Raises Refused with a sentence for the client, also if the recording ends before the section.
    """
    from app.media import sections  # the front end itself loads no decoder
    from app.media.filter_graph import FilterGraph
    from app.media.opening import Refused

    graph: FilterGraph | None = None
    builder: WaveformBuilder | None = None
    for position, frame in sections.read(path, start, end, track):
        if builder is None or graph is None:
            rate = frame.sample_rate
            first = math.floor(start * rate)
            last = max(first + 1, math.ceil(end * rate))
            block_size = max(1, (last - first) // (MAX_BINS // 2))
            builder = WaveformBuilder(rate, frame.layout.nb_channels, block_size)
            cut = ("atrim", f"start_pts={first}:end_pts={last}")
            graph = FilterGraph(frame, [cut, *_filters(block_size)])
        builder.extend(graph.filter(frame, position))
    if builder is None or graph is None:
        raise Refused(decoder_process.NO_AUDIO)
    builder.extend(graph.finish())
    if not builder.samples:
        raise Refused(decoder_process.OUTSIDE)
    return builder.build()


def _filters(block_size: int) -> list[tuple[str, str]]:
    """Return filters that cut frames into blocks and measure each channel's minimum and maximum, or, of short blocks,
    into many of them, with interleaved samples."""
    if block_size <= _SHORT_BLOCK:
        return [
            ("aformat", "sample_fmts=flt"),
            ("asetnsamples", f"n={_SAMPLES_OF_BLOCKS // block_size * block_size}:p=0"),
            ("abuffersink", ""),
        ]
    return [
        ("aformat", "sample_fmts=fltp"),
        ("asetnsamples", f"n={block_size}:p=0"),
        ("astats", "metadata=1:reset=1:measure_perchannel=Min_level+Max_level:measure_overall=none"),
        ("abuffersink", ""),
    ]


def _split(frame: Any) -> list[array[float]]:
    """Return the samples of each channel of a frame of interleaved 32-bit floats."""
    from av.audio.plane import AudioPlane  # the front end itself loads no decoder

    channels = frame.layout.nb_channels
    plane: Any = AudioPlane(frame, 0)
    samples = array("f", bytes(plane)[: 4 * channels * frame.samples])
    return [samples[channel::channels] for channel in range(channels)]


def _extremes(samples: array[float], block_size: int) -> tuple[array[float], array[float]]:
    """Return the least and the greatest sample of each block, the last of which may be shorter.

    0 counts for not-a-number, infinities and what exceeds a float.
    """
    levels = samples.tolist()
    least, greatest = _least_and_greatest(levels, block_size)
    # A sum with not-a-number or infinities is not finite; that of floats, a double, is.
    if not math.isfinite(sum(levels)) or min(least) <= -_MAX_LEVEL or max(greatest) >= _MAX_LEVEL:
        finite = [level if abs(level) < _MAX_LEVEL else 0.0 for level in levels]
        least, greatest = _least_and_greatest(finite, block_size)
    return array("f", least), array("f", greatest)


def _least_and_greatest(levels: list[float], block_size: int) -> tuple[list[float], list[float]]:
    if block_size == 1:
        return levels, levels
    if block_size > _FEW_SAMPLES:
        blocks = [levels[start : start + block_size] for start in range(0, len(levels), block_size)]
        return list(map(min, blocks)), list(map(max, blocks))
    whole = len(levels) // block_size * block_size
    columns = [levels[first:whole:block_size] for first in range(block_size)]
    rest = [levels[whole:]] if levels[whole:] else []
    return [*map(min, *columns), *map(min, rest)], [*map(max, *columns), *map(max, rest)]


def _parse_level(text: str) -> float:
    """Return a level of `astats` as a float; 0 for not-a-number, infinities and what exceeds a 32-bit float."""
    level = float(text)
    return level if abs(level) < _MAX_LEVEL else 0.0


def _to_little_endian(levels: array[float]) -> array[float]:
    """Convert between native and little-endian byte order; its own inverse."""
    if sys.byteorder == "big":
        levels = array("f", levels)
        levels.byteswap()
    return levels


def main(arguments: list[str]) -> int:
    """Write a waveform's bytes to stdout (exit status 0) or {"refused": detail} (exit status 1)."""
    if len(arguments) not in (4, 6):
        sys.stderr.write(
            "usage: python -m app.media.waveform PATH MAX_SECONDS MAX_SAMPLES TRACK [START END] (TRACK 0: default)\n"
        )
        return 2
    path, track = Path(arguments[0]).absolute(), int(arguments[3]) or None
    if len(arguments) == 6:
        start, end = float(arguments[4]), float(arguments[5])
        return decoder_process.answer(lambda: read_section(path, start, end, track).to_bytes())
    return decoder_process.answer(lambda: read(path, float(arguments[1]), int(arguments[2]), track).to_bytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
