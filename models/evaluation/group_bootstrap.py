"""Intervals by the bootstrap: whole groups are drawn again and again, as often as there are, and a figure is taken of
each draw. Items of one group (clips cut from one source) rise and fall together, so they are drawn together."""

from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 1000
COVERED = 0.95


def weights(groups: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draws, items): how often each item was drawn with its group. Raises ValueError without items."""
    if not groups:
        raise ValueError("there is nothing to draw from")
    names = list(dict.fromkeys(groups))
    place = {name: number for number, name in enumerate(names)}
    drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), draws)
    return drawn[:, [place[group] for group in groups]]


def interval(figures: np.ndarray) -> tuple[float, float]:
    """Where the middle 95 % of the draws' figures lie; draws without a figure (NaN) do not count, NaN if none has."""
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    # Without interpolation: between two infinite figures (a perfect estimate) there is none.
    low, high = np.quantile(figures, [(1 - COVERED) / 2, (1 + COVERED) / 2], method="inverted_cdf")
    return float(low), float(high)
