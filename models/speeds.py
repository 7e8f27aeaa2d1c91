"""Masks of a mixture as it would be at other speeds, back at its own: their mean errs less than any of them.

Speed moves pitch and time, as a tape's does. It is changed in the magnitudes, by interpolation, so that nothing is
resampled, and the mean of the masks is applied to the mixture's own spectrum. Letters: B mixtures, T frames, F bins.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks import Separator


def encode_at(separator: Separator, magnitude: Tensor, speeds: Sequence[float]) -> list[tuple[Tensor, ...]]:
    """Return the separator's features of magnitudes (B, T, F) at each speed."""
    return [separator.encode_mixture(at_speed(magnitude, speed)) for speed in speeds]


def mean_mask(
    separator: Separator, encoded: Iterable[tuple[Tensor, ...]], speeds: Sequence[float], condition: Tensor, frames: int
) -> Tensor:
    """Return the mean (B, frames, F) of the masks of features at each speed, for conditions (B, K); float32."""
    total = None
    for speed, features in zip(speeds, encoded, strict=True):
        played = _length(frames, speed)
        mask = from_speed(separator.predict(*features, condition)[:, :played].float(), speed, frames)
        total = mask if total is None else total + mask
    if total is None:
        raise ValueError("a mean needs at least one speed")
    return total if len(speeds) == 1 else total / len(speeds)


def at_speed(magnitude: Tensor, speed: float) -> Tensor:
    """Return magnitudes (B, T, F) at a speed: (B, T / speed, F), silent above what a slower one has."""
    if speed == 1:
        return magnitude
    bins = magnitude.shape[2]
    played = _stretch(magnitude, speed, _length(magnitude.shape[1], speed))
    highest = int((bins - 1) * speed) + 1
    return F.pad(played[..., :highest], (0, bins - highest)) if highest < bins else played


def from_speed(mask: Tensor, speed: float, frames: int) -> Tensor:
    """Return a mask (B, T / speed, F) at a speed for the mixture itself: (B, frames, F). What a faster one moved above
    the highest bin has the mask of that bin."""
    return mask if speed == 1 else _stretch(mask, 1 / speed, frames)


def _length(frames: int, speed: float) -> int:
    return max(1, round(frames / speed))


def _stretch(values: Tensor, factor: float, frames: int) -> Tensor:
    """Return values (B, T, F) with bin f moved to f x factor and the time stretched to `frames`, interpolated."""
    bins = values.shape[2]
    places = (torch.arange(bins, device=values.device) / factor).clamp(max=bins - 1)
    below = places.floor().long()
    moved = torch.lerp(values[..., below], values[..., (below + 1).clamp(max=bins - 1)], places - below)
    return F.interpolate(moved.transpose(1, 2), frames, mode="linear", align_corners=True).transpose(1, 2)
