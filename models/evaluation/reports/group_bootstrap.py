"""Intervals by the bootstrap over groups: groups are drawn with replacement, with all their items, since items of one
group (clips cut from one source) are correlated."""

from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 1000
COVERED = 0.95


def weights(groups: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return how often each item was drawn with its group, (draws, items). Raises ValueError without items."""
    if not groups:
        raise ValueError("there is nothing to draw from")
    names = list(dict.fromkeys(groups))
    place = {name: number for number, name in enumerate(names)}
    drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), draws)
    return drawn[:, [place[group] for group in groups]]


def interval(figures: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of the draws' figures; draws without a figure (NaN) are left out, NaN if none has one."""
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    # Without interpolation, which is undefined between infinite figures (of perfect estimates).
    low, high = np.quantile(figures, [(1 - COVERED) / 2, (1 + COVERED) / 2], method="inverted_cdf")
    return float(low), float(high)
