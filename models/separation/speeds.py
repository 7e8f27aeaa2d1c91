"""Estimates of a mixture that is played at several speeds: their mean errs less than any of them.

Speed moves pitch and time together, as a tape's does, so that a separator sees the same sounds as other ones.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor

from models.audio import resample


def play(samples: Tensor, speed: Fraction) -> Tensor:
    """Return samples (..., n) at a speed: (..., n / speed)."""
    if speed == 1 or not samples.numel():
        return samples
    played = resample(samples.reshape(-1, samples.shape[-1]), speed.numerator, speed.denominator)
    return played.unflatten(0, samples.shape[:-1])


def mean_estimate(estimates: Sequence[Tensor], speeds: Sequence[Fraction]) -> Tensor:
    """Return the mean (..., n) of estimates of a mixture at speeds, of which the first is 1: each (..., n / speed).

    Of the others, only what differs from the first is brought back to the mixture's speed: the highest frequencies,
    which resampling takes away, stay the first one's. NaN in the first one stays.
    """
    own = estimates[0]
    samples, total = own.shape[-1], None
    for speed, estimate in zip(speeds[1:], estimates[1:], strict=True):
        back = play(estimate.nan_to_num() - play(own.nan_to_num(), speed), 1 / speed)[..., :samples]
        back = F.pad(back, (0, samples - back.shape[-1]))
        total = back if total is None else total + back
    return own if total is None else own + total / len(speeds)
