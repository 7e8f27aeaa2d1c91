"""Losses of a separator: the default one in the STFT domain, where no inverse transform is needed, and the paper's."""

import torch
from torch import Tensor

SOFT = 1e-3  # soft threshold of 30 dB: better estimates gain little
SOFT_ABSENT = 1e-2  # 20 dB: with more, silence would be rewarded above separation


def separation_loss(masks: Tensor, targets: Tensor, mixtures: Tensor) -> Tensor:
    """Return the mean over rows of the negative SNR in dB with a soft threshold.

    masks: real (B, frames, bins); targets, mixtures: complex, the same shape. If the target is silent, the energy of
    the estimate relative to the mixture's, with its own threshold.
    """
    # |m X - S|^2 = m^2 |X|^2 - 2 m Re(X* S) + |S|^2: no complex number needs a gradient.
    power = mixtures.real.square() + mixtures.imag.square()
    product = mixtures.real * targets.real + mixtures.imag * targets.imag
    target = torch.view_as_real(targets).square().sum((1, 2, 3))
    mixture = power.sum((1, 2))
    error = (masks * (masks * power - 2 * product)).sum((1, 2)) + target
    present = target > 1e-6 * mixture
    reference = torch.where(present, target, mixture).clamp(min=1e-12)  # digital silence
    soft = torch.where(present, SOFT, SOFT_ABSENT)
    return 10 * torch.log10(error.clamp(min=0) / reference + soft).mean()


def waveform_l1(errors: Tensor, mixtures: Tensor) -> Tensor:
    """Return the mean magnitude of the errors of estimates (B, T), relative to the RMS of each mixture (B, T), so that
    quiet ones count as much."""
    level = mixtures.square().mean(1).sqrt().clamp(min=1e-8)
    return (errors.abs().mean(1) / level).mean()
