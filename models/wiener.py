"""Joint refinement of all targets of a mixture: a Wiener filter from their estimated magnitudes.

One step of expectation-maximisation as in Liutkus and Stöter, "norbert", with one channel.
Letters: J sources, ... any batch dimensions, T frames, F bins.
"""

import torch
from torch import Tensor

_EPSILON = 1e-9
# Spectra are scaled to about this magnitude, so that their squares stay precise in float32.
_SCALE = 8.0


def with_residual(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """(J, ..., T, F) -> (J + 1, ..., T, F): add the residual max(|X| - sum m, 0) as a source.

    Without it, a single target would be refined into the whole mixture.
    """
    left = (mixture.abs() - magnitudes.sum(dim=0)).clamp_min(0)
    return torch.cat([magnitudes, left[None]])


def refine(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """Divide the mixture among its sources in proportion to their refined powers.

    mixture: complex (..., T, F), one window of one channel in the last two dimensions. magnitudes: (J, ..., T, F), at
    least 0. Gives complex (J, ..., T, F), whose sum is the mixture wherever any source has power.
    """
    estimates = mixture * (magnitudes / (_EPSILON + magnitudes.sum(dim=0)))
    scale = (mixture.abs().amax(dim=(-2, -1), keepdim=True) / _SCALE).clamp_min(1)
    powers = (estimates / scale).abs().square()
    total = powers.sum(dim=-2, keepdim=True)
    weighted = powers * (total / (_EPSILON + total))
    # norbert divides by `scale` before and multiplies after; the shares do not depend on it.
    return mixture * (weighted / (_EPSILON**0.5 + weighted.sum(dim=0)))
