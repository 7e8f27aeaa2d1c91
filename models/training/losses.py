"""Losses in the STFT domain, where no inverse transform is needed."""

import torch
from torch import Tensor

SOFT = 1e-3  # 30 dB: what is better than this is good enough


def separation_loss(estimates: Tensor, targets: Tensor, mixtures: Tensor, soft: float = SOFT) -> Tensor:
    """Mean over rows of the negative SNR in dB with a soft threshold; all complex (B, frames, bins).

    Where the target is silent, the energy of the estimate against the mixture's, with the same threshold.
    """

    def energy(spectra: Tensor) -> Tensor:
        return torch.view_as_real(spectra).square().sum((1, 2, 3))

    target, mixture = energy(targets), energy(mixtures)
    reference = torch.where(target > 1e-6 * mixture, target, mixture)
    return 10 * torch.log10((energy(estimates - targets) + soft * reference) / reference).mean()
