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


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return 10 * torch.log10(numerator.square().sum(-1).clamp(min=FLOOR) / denominator.square().sum(-1).clamp(min=FLOOR))
