"""Waveforms in memory: channels and sampling rates.

Shapes: C channels, n samples. Samples are float32, nominally in [-1, 1].
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.errors import SpanOutside
from models.media.conversion import CANCELLATION, BlockResampler

# Seconds: times typed by hand are rounded.
_SPAN_SLACK = 0.01
# More channels than any array of microphones has are the samples of a transposed recording.
_MOST_CHANNELS = 1024
_ENERGY_BLOCK = 65536  # samples whose squares are added in float32


@dataclass(frozen=True)
class Waveform:
    """A recording in memory: `samples` (C, n) float32 at `rate` Hz. Raises ValueError for anything else."""

    samples: Tensor
    rate: int

    def __post_init__(self) -> None:
        if not isinstance(self.samples, Tensor):
            raise ValueError(f"samples must be a tensor, as torch.from_numpy makes, not of {type(self.samples)}")
        if self.samples.ndim != 2 or self.samples.shape[0] == 0:
            raise ValueError(f"samples must be (channels, n), not {tuple(self.samples.shape)}")
        if self.samples.shape[0] > _MOST_CHANNELS:
            raise ValueError(f"samples must be (channels, n), not {tuple(self.samples.shape)}: transpose them")
        if self.samples.dtype != torch.float32:
            raise ValueError(f"samples must be float32 between -1 and 1, not {self.samples.dtype}")
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, not {self.rate}")

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def frames(self) -> int:
        return self.samples.shape[1]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.rate

    def span(self, start: float, end: float) -> "Waveform":
        """The part between `start` and `end` in seconds; what lies outside the recording is cut off."""
        first = max(round(start * self.rate), 0)
        return Waveform(self.samples[:, first : max(round(end * self.rate), first)], self.rate)


def require_inside(start: float, end: float, duration: float) -> None:
    """Require that a span, in seconds, is inside a recording of `duration`. Raises SpanOutside."""
    if not 0 <= start < end <= duration + _SPAN_SLACK:
        raise SpanOutside(f"the span from {start:g} to {end:g} s is not inside the recording of {duration:g} s")


def require_finite(recording: Waveform) -> None:
    """Require that all samples are numbers: one that is not would make all of a window's estimate none. Raises
    ValueError."""
    sound = recording.samples.isfinite()
    if not sound.all():
        at = int((~sound).any(dim=0).nonzero()[0])
        raise ValueError(f"samples must be finite: at {at / recording.rate:.3f} s, one is NaN or infinite")


def mono(samples: Tensor) -> Tensor:
    """(C, n) -> (n,): the mean of the channels, or the loudest channel where the mean loses 6 dB or more to it.

    The loss is measured over all n samples together.
    """
    if samples.shape[0] == 1:
        return samples[0]
    if samples.device.type == "cpu" and not samples.is_contiguous():
        # Of interleaved channels, as files have them: numpy takes a ninth of torch's time.
        samples = torch.from_numpy(np.ascontiguousarray(samples.numpy()))
    mean = samples.mean(dim=0)
    energies = [_energy(channel) for channel in samples]
    loudest = energies.index(max(energies))
    return samples[loudest] if _energy(mean) <= CANCELLATION * energies[loudest] else mean


def _energy(samples: Tensor) -> float:
    """Return the sum of the squares (n,) -> (), to compare it: to six digits, however many samples there are."""
    return sum(float(part @ part) for part in samples.split(_ENERGY_BLOCK))


def peak(samples: Tensor) -> float:
    """Return the highest amplitude of samples on the CPU, 0 if there are none."""
    values = samples.numpy()
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """(C, n) at `from_rate` Hz -> (C, m) at `to_rate` Hz, m = n * to_rate / from_rate rounded, without delay."""
    return Resampler(from_rate, to_rate, samples.shape[0]).feed(samples, last=True)


class Resampler:
    """`BlockResampler` of tensors."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._blocks = None if from_rate == to_rate else BlockResampler(from_rate, to_rate, channels)

    def feed(self, block: Tensor, last: bool = False) -> Tensor:
        """Take (C, n), where n may be 0, and return the (C, m) that are ready. Nothing may follow a `last` block."""
        return block if self._blocks is None else torch.from_numpy(self._blocks.feed(block.numpy(), last))
