"""Metrics of rankings: how well scores rank positives above negatives. Clips may have weights, for a fast bootstrap.

Letters: N clips, ... draws of a bootstrap.
"""

import numpy as np
from scipy.stats import norm


def average_precision(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the average precision: scores (N,), there (N,) bool, weights (..., N) -> (...).

    Clips of equal score count together. NaN without positives.
    """
    found, answered = _counts(scores, there, weights)
    precision = np.divide(found, answered, out=np.zeros_like(found), where=answered > 0)
    gained = np.diff(found, axis=-1, prepend=0.0)
    return _ratio((gained * precision).sum(axis=-1), found[..., -1])


def area_under_curve(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the probability that a positive scores above a negative, with equal scores counting half.

    Shapes as above. NaN without positives or negatives.
    """
    found, answered = _counts(scores, there, weights)
    gained = np.diff(found, axis=-1, prepend=0.0)
    false = np.diff(answered - found, axis=-1, prepend=0.0)
    below = (answered - found)[..., -1:] - (answered - found)
    return _ratio((gained * (below + false / 2)).sum(axis=-1), found[..., -1] * (answered - found)[..., -1])


def d_prime(area: float) -> float:
    """Return d', the distance in standard deviations of two normal distributions with this area under the curve."""
    return float(2**0.5 * norm.ppf(area))


def _counts(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the cumulative weight of positives, and of all clips, by falling distinct score: (..., distinct) each."""
    if weights is None:
        weights = np.ones(len(scores))
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    ordered = weights[..., order].astype(np.float64)
    return (ordered * there[order]).cumsum(axis=-1)[..., last], ordered.cumsum(axis=-1)[..., last]


def _ratio(value: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(value, whole, out=np.full(np.shape(value), np.nan), where=np.asarray(whole) > 0)
