"""Intervals by a two-level bootstrap: classes are drawn with replacement, then the groups of each class drawn.

Rows of one source group sound alike, and groups of one class more so than any two clips: intervals over rows alone
would be far too narrow. Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
CLASS_DRAWS = 500  # of one class
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure over `rows` rows and its interval at `LEVEL`; NaN where it is undefined."""

    value: float
    low: float
    high: float
    rows: int


class TwoLevel:
    """Two-level bootstrap. Figures of the same rows share the weights of every draw, so that differences are paired.

    classes, groups: of each row; groups of the same name in two classes are different. Figures are over rows: a class
    counts as often as it has rows.
    """

    def __init__(
        self, classes: Sequence[str], groups: Sequence[str], draws: int = DRAWS, seed: int = 0, level: float = LEVEL
    ) -> None:
        if len(classes) != len(groups):
            raise ValueError(f"{len(classes)} rows have a class, and {len(groups)} a group")
        random = np.random.default_rng(seed)
        self._tail = (1 - level) / 2
        named = sorted(set(zip(classes, groups, strict=True)))
        place = {name: at for at, name in enumerate(named)}
        self._group_of = np.array([place[name] for name in zip(classes, groups, strict=True)], dtype=int)
        of_class: dict[str, list[int]] = {}
        for name, at in place.items():
            of_class.setdefault(name[0], []).append(at)
        self._weights = np.zeros((draws, len(named)))
        if not named:
            return
        times = random.multinomial(len(of_class), np.full(len(of_class), 1 / len(of_class)), size=draws)
        for column, members in enumerate(of_class.values()):
            # The groups of a class that is drawn k times are drawn k times independently: one multinomial.
            drawn = times[:, column] * len(members)
            self._weights[:, members] = random.multinomial(drawn, np.full(len(members), 1 / len(members)))

    def mean(self, values: np.ndarray) -> Estimate:
        """Return the mean of values (rows,); rows with NaN are left out."""
        there, groups = self._present(values)
        if not there.any():
            return _NOTHING
        size = self._weights.shape[1]
        sums = self._weights @ np.bincount(groups, values[there], minlength=size)
        counts = self._weights @ np.bincount(groups, minlength=size)
        drawn = sums[counts > 0] / counts[counts > 0]
        return self._estimate(float(values[there].mean()), drawn, groups)

    def quantile(self, values: np.ndarray, share: float) -> Estimate:
        """Return the smallest value that `share` of the rows do not exceed."""
        there, groups = self._present(values)
        if not there.any():
            return _NOTHING
        order = np.argsort(values[there], kind="stable")
        ordered, groups = values[there][order], groups[order]
        reached = self._weights[:, groups].cumsum(1)
        reached = reached[reached[:, -1] > 0]
        drawn = ordered[(reached < share * reached[:, -1:]).sum(1).clip(max=len(ordered) - 1)]
        at = min(int(np.ceil(share * len(ordered))), len(ordered)) - 1
        return self._estimate(float(ordered[max(at, 0)]), drawn, groups)

    def difference(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """Return the mean of first - second, over rows that have both."""
        return self.mean(first - second)

    def _present(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(values) != len(self._group_of):
            raise ValueError(f"{len(values)} values for {len(self._group_of)} rows")
        there = ~np.isnan(values)
        return there, self._group_of[there]

    def _estimate(self, value: float, drawn: np.ndarray, groups: np.ndarray) -> Estimate:
        if len(set(groups.tolist())) < 2:  # a single group has no spread
            return Estimate(value, float("nan"), float("nan"), len(groups))
        low, high = np.quantile(drawn, [self._tail, 1 - self._tail])
        return Estimate(value, float(low), float(high), len(groups))


def by_class(labels: Sequence[str], groups: Sequence[str]) -> Iterator[tuple[str, np.ndarray, TwoLevel]]:
    """Yield each class of rows by name, which rows are of it, (rows,) bool, and the bootstrap over its groups."""
    named = np.array(labels)
    for label in sorted(set(labels)):
        there = named == label
        own = [group for group, inside in zip(groups, there, strict=True) if inside]
        yield label, there, TwoLevel([label] * len(own), own, CLASS_DRAWS)


_NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
