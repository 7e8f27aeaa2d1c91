"""Joint refinement of all targets of a mixture: a Wiener filter from their estimated magnitudes.

One step of expectation-maximisation as in Liutkus and Stöter, "norbert", with one channel.
Letters: J sources, ... any batch dimensions, T frames, F bins.
"""

import torch
from torch import Tensor

_EPSILON = 1e-9
# Spectra are scaled to about this magnitude, so that their squares stay precise in float32.
_SCALE = 8.0


def magnitudes(mixture: Tensor, masks: Tensor, exhaustive: bool) -> Tensor:
    """Return the magnitudes (J, C, T, F) of the sources: the mixture's (C, T, F) under each of the masks (Q, T, F) and,
    unless these are exhaustive, a residual, max(|X| - sum m, 0).

    Without it, a single target would be refined into the whole mixture.
    """
    level = mixture.abs()
    found = level.new_empty(len(masks) + (not exhaustive), *mixture.shape)
    torch.mul(masks[:, None], level, out=found[: len(masks)])
    if not exhaustive:
        torch.sub(level, found[:-1].sum(dim=0), out=found[-1]).clamp_min_(0)
    return found


def shares(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """Return the refined sources as shares (J, ..., T, F) of the mixture, in place of the magnitudes: they are computed
    in the same memory, since an array of all sources may take 300 MB.

    mixture: complex (..., T, F), one window of one channel in the last two dimensions. magnitudes: (J, ..., T, F), at
    least 0. The shares are in proportion to the sources' refined powers and add up to 1 wherever any source has power.
    """
    whole = _EPSILON + magnitudes.sum(dim=0)
    scale = (mixture.abs().amax(dim=(-2, -1), keepdim=True) / _SCALE).clamp_min(1)
    # Frames beside each other, as `torch.stft` returns them, in the memory of the magnitudes.
    weighted = magnitudes.view(*magnitudes.shape[:-2], magnitudes.shape[-1], magnitudes.shape[-2]).transpose(-1, -2)
    for source, magnitude in zip(weighted, magnitudes, strict=True):
        powers = (mixture * (magnitude / whole)).div_(scale).abs().square_()
        total = powers.sum(dim=-2, keepdim=True)
        torch.mul(powers, total / (_EPSILON + total), out=source)
    # norbert divides by `scale` before and multiplies after; the shares do not depend on it.
    return weighted.div_(_EPSILON**0.5 + weighted.sum(dim=0))
