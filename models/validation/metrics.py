"""Metrics of separation in dB; waveforms are (..., samples)."""

import torch
from torch import Tensor

FLOOR = 1e-10


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the scale-invariant SDR, Le Roux et al. (arXiv 1811.02508), without removing means."""
    scale = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True).clamp(min=FLOOR)
    wanted = scale * target
    return _ratio(wanted, estimate - wanted)


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the signal-to-distortion ratio, which depends on the estimate's level: 10 log10(|s|^2 / |s - e|^2)."""
    return _ratio(target, target - estimate)


def attenuation(estimate: Tensor, mixture: Tensor) -> Tensor:
    """Return the level of an estimate below its mixture."""
    return _ratio(mixture, estimate)


def improvements(estimate: Tensor, mixture: Tensor, target: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Return the improvements of SI-SDR and SDR of each row (B,), and whether the estimate is closer to the other sound
    (1 or 0); NaN for an estimate of NaN, which marks a row without a query."""
    near = si_sdr(estimate, target)
    # Keep NaN: a comparison with NaN would be False.
    wrong = torch.where(near.isnan(), near, (si_sdr(estimate, others) > near).float())
    gained = sdr(estimate, target) - sdr(mixture, target)
    return {"si_sdri": near - si_sdr(mixture, target), "sdri": gained, "wrong": wrong}


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return 10 * torch.log10(numerator.square().sum(-1).clamp(min=FLOOR) / denominator.square().sum(-1).clamp(min=FLOOR))
