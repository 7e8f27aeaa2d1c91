"""Conversion of decoded blocks: sampling rates, and when channels are not mixed. Imports no torch: processes that only
decode start in a blink.

Shapes: C channels, n samples. Samples are float32, nominally in [-1, 1].
"""

import numpy as np
import soxr
from numpy.typing import NDArray

Block = NDArray[np.float32]

# Channels in anti-phase cancel in their mean. From this loss on (a power ratio of 6 dB) the loudest channel is used
# instead of the mean.
CANCELLATION = 10 ** (-6 / 10)

# soxr's high quality: linear phase, 20 bits, pass band to 0.91 of the lower Nyquist frequency.
_QUALITY = "HQ"


class BlockResampler:
    """Resampler that takes a recording block by block; its output does not depend on how the recording is cut.

    Rates are any positive integers in Hz. The output lags behind the input (the filter looks ahead) until the last
    block, which flushes the rest.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._from_rate = from_rate
        self._to_rate = to_rate
        self._taken = 0
        self._given = 0
        self._stream = (
            None
            if from_rate == to_rate
            else soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality=_QUALITY)
        )

    def feed(self, block: Block, last: bool = False) -> Block:
        """Take (C, n), where n may be 0, and return the (C, m) that are ready. Nothing may follow a `last` block."""
        if self._stream is None:
            return block
        self._taken += block.shape[1]
        interleaved = np.ascontiguousarray(block.T)
        ready = np.ascontiguousarray(self._stream.resample_chunk(interleaved, last=last).T)
        self._given += ready.shape[1]
        if not last:
            return ready
        # soxr may round the total length up or down, depending on the blocks: make it exact.
        missing = round(self._taken * self._to_rate / self._from_rate) - self._given
        self._given += missing
        return np.pad(ready, ((0, 0), (0, missing))) if missing > 0 else ready[:, : ready.shape[1] + missing]
