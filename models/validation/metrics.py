"""Measures of separation in dB; waveforms (..., samples)."""

import torch
from torch import Tensor

FLOOR = 1e-10


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, Le Roux et al. (arXiv 1811.02508), without removing means."""
    scale = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True).clamp(min=FLOOR)
    wanted = scale * target
    return _ratio(wanted, estimate - wanted)


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Signal-to-distortion ratio, the estimate's level counted: 10 log10(|s|^2 / |s - e|^2)."""
    return _ratio(target, target - estimate)


def attenuation(estimate: Tensor, mixture: Tensor) -> Tensor:
    """Level of an estimate below its mixture."""
    return _ratio(mixture, estimate)


def improvements(estimate: Tensor, mixture: Tensor, target: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Of each row (B,) in dB the gain in SI-SDR and in SDR, and whether it went to the wrong sound (1 or 0); NaN for an
    estimate of NaN, which is a row that was not asked."""
    near = si_sdr(estimate, target)
    # A comparison with NaN is False, and a row that was not asked is not right.
    wrong = torch.where(near.isnan(), near, (si_sdr(estimate, others) > near).float())
    gained = sdr(estimate, target) - sdr(mixture, target)
    return {"si_sdri": near - si_sdr(mixture, target), "sdri": gained, "wrong": wrong}


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return 10 * torch.log10(numerator.square().sum(-1).clamp(min=FLOOR) / denominator.square().sum(-1).clamp(min=FLOOR))
