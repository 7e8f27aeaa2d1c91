"""Joint refinement of all targets of a mixture: a Wiener filter made from their estimated magnitudes.

One step of expectation-maximisation as in Liutkus and Stöter, "norbert", with one channel; `models.md` of the design
gives the equations. Letters: J sources, ... any batch dimensions, T frames, F bins.
"""

import torch
from torch import Tensor

_EPSILON = 1e-9
# Spectra are brought down to about this magnitude, so that their squares stay in float32's comfortable range.
_SCALE = 8.0


def with_residual(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """(J, ..., T, F) -> (J + 1, ..., T, F): adds what the targets leave, max(|X| - sum m, 0), as a source.

    Without it, one target alone would be refined into the whole mixture.
    """
    left = (mixture.abs() - magnitudes.sum(dim=0)).clamp_min(0)
    return torch.cat([magnitudes, left[None]])


def refine(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """Divides the mixture among its sources in proportion to their refined powers.

    mixture: complex (..., T, F), one window of one channel in the last two dimensions. magnitudes: (J, ..., T, F), at
    least 0. Gives complex (J, ..., T, F), whose sum is the mixture wherever any source has power.
    """
    estimates = mixture * (magnitudes / (_EPSILON + magnitudes.sum(dim=0)))
    scale = (mixture.abs().amax(dim=(-2, -1), keepdim=True) / _SCALE).clamp_min(1)
    powers = (estimates / scale).abs().square()
    total = powers.sum(dim=-2, keepdim=True)
    weighted = powers * (total / (_EPSILON + total))
    # The source's equations divide by `scale` before and multiply after; the shares in between are what matters.
    return mixture * (weighted / (_EPSILON**0.5 + weighted.sum(dim=0)))
