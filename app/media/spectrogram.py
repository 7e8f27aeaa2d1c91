"""Spectrogram of a section of a recording, as a PNG: time from left to right, frequency upwards on a logarithmic axis.

FFmpeg's `showcqt` transforms (constant Q: long windows for low frequencies, short ones for high) at equal distances on
the recording's own clock, so that sections of the same scale fit together. `draw` runs `python -m
app.media.spectrogram` in the sandbox.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.media import decoder_process, png, priority
from app.media.probe import MEMORY_BYTES
from app.media.sandbox import SandboxLimits

VERSION = 1  # of what is drawn: to be counted up when pixels change, since clients keep pictures
MAX_WIDTH, MAX_HEIGHT = 2000, 512  # pixels
MIN_HEIGHT = 16
LOWEST_HZ, HIGHEST_HZ = 40.0, 16_000.0  # below half the sample rate
FLOOR_DB, CEILING_DB = -80.0, -10.0  # of a sine, whose peak is 1 at 0 dB; transparent below, one color above
_STEP_SECONDS = 0.005  # between transforms, of which a pixel shows the loudest
_LEAST_STEP_SECONDS = 0.0001  # pixels that are shorter are repeated
_MOST_STEPS = 30  # transforms of a pixel (one a second, if it lasts longer), and of a frame of FFmpeg's output
_WINDOW_SECONDS = 0.17  # of the lowest frequencies, at most
_WIDTH_OF_LOBE = 2.5  # pixels, half of it: no frequency falls between two of them
_OVERLAP = 1.5  # steps that windows last at least, so that no sound falls between two of them
# Length of the window for a frequency, in FFmpeg's language: its own rule, within these bounds.
_WINDOW = "min(384*timeclamp/(384+timeclamp*f),min({parts}*{narrowest}/f,max({narrowest}/f,{least})))"
_MOST_PARTS = 10  # of a pixel, whose mean it is: FFmpeg's limit
_GAMMA = 7  # of FFmpeg's levels, which are 8-bit: the highest it has, to resolve 1 dB at the floor
_RANGE_DB = CEILING_DB - FLOOR_DB
# One color stands for 1.1 dB. Each is distinct on white and on black; the quiet ones let the page shine through.
_COLORS = 64
_ANCHORS = (
    (0.00, (88, 96, 214, 0)),
    (0.25, (92, 86, 222, 110)),
    (0.50, (150, 64, 206, 205)),
    (0.75, (219, 62, 130, 245)),
    (1.00, (245, 124, 20, 255)),
)
# As long as a waveform: the whole recording may be drawn. What zlib cannot compress grows by less than a hundredth.
SANDBOX_LIMITS = SandboxLimits(
    seconds=360,
    cpu_seconds=360,
    memory_bytes=MEMORY_BYTES,
    file_bytes=0,
    output_bytes=MAX_WIDTH * MAX_HEIGHT + 65536,
    niceness=priority.NICENESS,
)


@dataclass(frozen=True)
class Tile:
    """What to draw: a section in seconds, at a size in pixels. What lies beyond the recording's end is transparent."""

    start: float
    end: float
    width: int
    height: int


async def draw(path: Path, tile: Tile, track: int | None = None, limits: SandboxLimits = SANDBOX_LIMITS) -> bytes:
    """Return the PNG of a section of the recording at `path`, or of a track of it, decoded in the sandbox.

    Raises AudioUndecodable, also if it takes too long, and SpanOutside, if the recording ends before the section.
    """

    def parse(image: bytes) -> bytes:
        if png.read_size(image) != (tile.width, tile.height):
            raise ValueError("a PNG of another size")
        return image

    numbers = (track or 0, tile.start, tile.end, tile.width, tile.height)
    return await decoder_process.run("app.media.spectrogram", path, numbers, limits, parse)


def highest_hz(sample_rate: int) -> float:
    """Return the frequency at the upper edge of the spectrogram of a recording."""
    return min(HIGHEST_HZ, sample_rate / 2)


# In the sandbox


@dataclass(frozen=True)
class _Grid:
    """Where the transforms of a tile are; positions in samples from the recording's beginning.

    columns: pixels that differ. steps: transforms of each. hop: samples from one transform to the next. lead:
    transforms before the first of the tile, whose windows are not full yet. begin, end: of the samples to transform.
    tail: of the silence behind them, or behind the recording's end, that fills FFmpeg's last frame.
    """

    rate: int
    columns: int
    steps: int
    hop: Fraction
    lead: int
    begin: int
    end: int
    tail: int

    @classmethod
    def of(cls, tile: Tile, rate: int) -> _Grid:
        seconds = tile.end - tile.start
        columns = max(1, min(tile.width, int(seconds / _LEAST_STEP_SECONDS)))
        pixel = round(seconds / columns, 9)  # the same for tiles of one scale, whose ends are rounded
        steps = max(min(math.ceil(pixel / _STEP_SECONDS), _MOST_STEPS), math.ceil(pixel))
        hop = Fraction(max(1, round(seconds * rate)), columns * steps)
        window = 1 << math.ceil(math.log2(rate * _WINDOW_SECONDS))
        lead = math.ceil(window / 2 / hop)
        begin = math.floor(round(tile.start * rate) + hop / 2 - lead * hop + Fraction(1, 2))
        end = begin + math.ceil((lead + columns * steps) * hop) + window
        return cls(rate, columns, steps, hop, lead, begin, end, math.ceil(2 * _MOST_STEPS * hop) + window)

    @property
    def steps_of_frame(self) -> int:
        """Transforms of a frame of FFmpeg's output, of which it makes 1 to 1000 a second."""
        return max(1, min(_MOST_STEPS, int(self.rate / self.hop)))

    @property
    def lead_rows(self) -> int:
        """Rows before those of the tile: the first frame of FFmpeg's output holds one transform only."""
        return self.lead + self.steps_of_frame - 1


def read(path: Path, tile: Tile, track: int | None = None) -> bytes:
    """Return the PNG of a section, decoded in this process: to be called in the sandbox.

    Raises Refused with a sentence for the client, also if the recording ends before the section.
    """
    from app.media import sections  # the front end itself loads no decoder
    from app.media.filter_graph import FilterGraph
    from app.media.opening import Refused

    graph: FilterGraph | None = None
    grid: _Grid | None = None
    rows: list[bytes] = []  # one a transform, from the lowest frequency to the highest
    is_reached = False
    margin = 1.0 + _MOST_STEPS * (tile.end - tile.start) / tile.width
    for position, frame in sections.read(path, tile.start - margin, tile.end + margin, track):
        if grid is None or graph is None:
            grid = _Grid.of(tile, frame.sample_rate)
            graph = FilterGraph(frame, _filters(grid, tile.height, frame.layout.nb_channels))
        is_reached = is_reached or position + frame.samples > tile.start * frame.sample_rate
        for picture in graph.filter(frame, position):
            rows += _levels(picture, grid, tile.height)
    if grid is None or graph is None:
        raise Refused(decoder_process.NO_AUDIO)
    if not is_reached:
        raise Refused(decoder_process.OUTSIDE)
    for picture in graph.finish():
        rows += _levels(picture, grid, tile.height)
    pixels = list(_loudest(rows[grid.lead_rows :][: grid.columns * grid.steps], grid.steps))
    pixels += [bytes(tile.height)] * (grid.columns - len(pixels))
    levels = b"".join(pixels[column * grid.columns // tile.width] for column in range(tile.width))
    colors = levels.translate(_COLOR_OF_LEVEL)
    return png.encode([colors[pixel :: tile.height] for pixel in reversed(range(tile.height))], _palette())


def _filters(grid: _Grid, height: int, channels: int) -> list[tuple[str, str]]:
    """Return filters that transform frames; a row of their pictures is a transform, the first at the bottom."""
    count = grid.steps_of_frame
    even = height + height % 2  # FFmpeg's pictures; the frequencies of one pixel more lie above
    octaves = math.log(highest_hz(grid.rate) / LOWEST_HZ)
    fps = (grid.rate / grid.hop / count).limit_denominator(100_000)
    # Seconds times hertz: windows of that length have lobes as wide as some pixels. Longer ones, where steps are far
    # apart, leave gaps between the lobes of pixels, which are made of parts then.
    narrowest = 4 * height / (_WIDTH_OF_LOBE * octaves)
    least = _OVERLAP * float(grid.hop) / grid.rate
    parts = max(1, min(_MOST_PARTS, math.ceil(least * highest_hz(grid.rate) / narrowest)))
    window = _WINDOW.format(narrowest=narrowest, least=least, parts=parts)
    gain = 10 ** (-CEILING_DB / 20) * (math.sqrt(2) if channels == 1 else 1)
    options = {
        "size": f"{even}x{count + count % 2}",
        "sono_h": count + count % 2,
        "bar_h": 0,
        "axis_h": 0,
        "fps": f"{fps.numerator}/{fps.denominator}",
        "count": count,
        "fcount": parts,
        "basefreq": LOWEST_HZ,
        "endfreq": LOWEST_HZ * math.exp(octaves * even / height),
        "timeclamp": _WINDOW_SECONDS,
        "tlength": window,
        "sono_g": _GAMMA,
        # Narrow lobes hold less of a noise: they would be fainter than wide ones.
        "sono_v": f"{gain}*sqrt(max(1,f/{narrowest}*{window}))",
        "cscheme": "|".join(["0.5"] * 6),  # the mean power of both channels, in all three colors
    }
    return [
        ("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
        ("atrim", f"start_pts={max(0, grid.begin)}:end_pts={grid.end}"),
        ("adelay", f"delays={max(0, -grid.begin)}S:all=1"),
        ("apad", f"pad_len={grid.tail}"),
        ("showcqt", ":".join(f"{name}='{value}'" for name, value in options.items())),
        ("format", "rgb24"),
        ("buffersink", ""),
    ]


def _levels(picture: Any, grid: _Grid, height: int) -> Iterator[bytes]:
    """Yield the levels of each transform in a picture."""
    plane = picture.planes[0]
    pixels, line = bytes(plane), plane.line_size
    for row in reversed(range(grid.steps_of_frame)):
        yield pixels[row * line : row * line + 3 * height : 3]


def _loudest(rows: list[bytes], steps: int) -> Iterator[bytes]:
    """Yield a row for so many transforms, with the highest level of each frequency."""
    if steps == 1:
        yield from rows
        return
    for start in range(0, len(rows), steps):
        group = rows[start : start + steps]
        yield bytes(map(max, *group)) if len(group) > 1 else group[0]


def _color(level: int) -> int:
    decibels = 10 * _GAMMA * math.log10(max(level, 1) / 255) + _RANGE_DB
    return max(0, min(_COLORS - 1, math.ceil(decibels / _RANGE_DB * (_COLORS - 1))))


_COLOR_OF_LEVEL = bytes(map(_color, range(256)))


def _palette() -> list[tuple[int, int, int, int]]:
    """Return the colors from the floor to the ceiling."""
    return [_blend(color / (_COLORS - 1)) for color in range(_COLORS)]


def _blend(place: float) -> tuple[int, int, int, int]:
    (start, one), (end, other) = next(pair for pair in pairwise(_ANCHORS) if place <= pair[1][0])
    share = (place - start) / (end - start)
    red, green, blue, alpha = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue, alpha


def main(arguments: list[str]) -> int:
    """Write a PNG to stdout (exit status 0) or {"refused": detail} (exit status 1)."""
    if len(arguments) != 6:
        sys.stderr.write(
            "usage: python -m app.media.spectrogram PATH TRACK START END WIDTH HEIGHT (TRACK 0: default)\n"
        )
        return 2
    path, track = Path(arguments[0]).absolute(), int(arguments[1]) or None
    tile = Tile(float(arguments[2]), float(arguments[3]), int(arguments[4]), int(arguments[5]))
    return decoder_process.answer(lambda: read(path, tile, track))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
