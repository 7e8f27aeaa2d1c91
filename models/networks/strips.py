"""Layers over large images, a strip of rows after the other: an image between them is never in memory whole.

At the full resolution of the paper's separator, an image of 10 s is 144 MiB, and there are ten of them. A strip stays
in memory that the process has already, and much of it in the processor's caches, from layer to layer.

Letters in shapes: B images, C channels, H rows, W pixels of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Layer = Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, C', H, W): a row depends on itself and its two neighbours
Rows = Callable[[int, int], Tensor]  # first and end -> these rows of an image, (B, C, end - first, W)

# 8 MiB of 32 channels in float32, or of 64 in bfloat16. Half of it takes 4 % longer, since a larger part of the rows is
# computed twice; twice as much saves 4 %, and costs 70 MiB.
_STRIP_PIXELS = 1 << 16


class Striped:
    """The image that layers make of another, whose rows are computed whenever they are read."""

    def __init__(self, layers: Sequence[Layer], read: Rows, batch: int, height: int, width: int) -> None:
        """read: reads the other image. batch, height, width: of both."""
        self._layers = layers
        self._read = read
        self._height = height
        # About equal strips of an even number of rows, so that they can be halved.
        self._rows = 2 * math.ceil(height / math.ceil(batch * height * width / _STRIP_PIXELS) / 2)

    def __call__(self, start: int, end: int) -> Tensor:
        """Return the rows from `start` to `end`."""
        # For each layer one more row on each side, unless the image ends there. A layer takes it for the image's edge
        # and computes it wrongly, so it is not passed on.
        first, last = max(start - len(self._layers), 0), min(end + len(self._layers), self._height)
        strip = self._read(first, last)
        for layer in self._layers:
            strip = layer(strip)
            above, below = int(first > 0), int(last < self._height)
            strip = strip[:, :, above : strip.shape[2] - below]
            first, last = first + above, last - below
        return strip[:, :, start - first : end - first]

    def strips(self) -> Iterator[Tensor]:
        """Yield the whole image in strips of rows."""
        for start in range(0, self._height, self._rows):
            yield self(start, min(start + self._rows, self._height))


class JoinedStrips:
    """An image of `height` rows that is filled strip by strip, in channels-last layout."""

    image: Tensor

    def __init__(self, height: int) -> None:
        self._height = height
        self._filled = 0

    def append(self, strip: Tensor) -> None:
        """Add the next rows, (B, C, rows, W)."""
        batch, channels, rows, width = strip.shape
        if rows == self._height:
            self.image = strip
            return
        if not self._filled:
            self.image = strip.new_empty(batch, self._height, width, channels).permute(0, 3, 1, 2)
        self.image[:, :, self._filled : self._filled + rows] = strip
        self._filled += rows


def join(strips: Iterator[Tensor], height: int) -> Tensor:
    """Return the image of `height` rows that strips are parts of."""
    joined = JoinedStrips(height)
    for strip in strips:
        joined.append(strip)
    return joined.image


def rows_of(image: Tensor) -> Rows:
    """Return a function that returns an image's rows."""
    return lambda start, end: image[:, :, start:end]
