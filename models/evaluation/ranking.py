"""How well scores rank what is there above what is not. Clips may be weighted, so that a bootstrap costs no sorting.

Letters: N clips, ... draws of a bootstrap.
"""

import numpy as np
from scipy.stats import norm


def average_precision(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under precision over recall, in steps: scores (N,), there (N,) bool, weights (..., N) -> (...).

    Clips of equal score are taken together. NaN where nothing is there.
    """
    found, answered = _counts(scores, there, weights)
    precision = np.divide(found, answered, out=np.zeros_like(found), where=answered > 0)
    gained = np.diff(found, axis=-1, prepend=0.0)
    return _ratio((gained * precision).sum(axis=-1), found[..., -1])


def area_under_curve(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Probability that a clip in which it is there scores above one in which it is not, equal scores counting half.

    Shapes as above. NaN where either kind is missing.
    """
    found, answered = _counts(scores, there, weights)
    gained = np.diff(found, axis=-1, prepend=0.0)
    false = np.diff(answered - found, axis=-1, prepend=0.0)
    below = (answered - found)[..., -1:] - (answered - found)
    return _ratio((gained * (below + false / 2)).sum(axis=-1), found[..., -1] * (answered - found)[..., -1])


def d_prime(area: float) -> float:
    """How many standard deviations two normal distributions lie apart whose curve has this area."""
    return float(2**0.5 * norm.ppf(area))


def _counts(scores: np.ndarray, there: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight of what is there, and of all clips, down to each distinct score from above: (..., distinct) each."""
    if weights is None:
        weights = np.ones(len(scores))
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    ordered = weights[..., order].astype(np.float64)
    return (ordered * there[order]).cumsum(axis=-1)[..., last], ordered.cumsum(axis=-1)[..., last]


def _ratio(value: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(value, whole, out=np.full(np.shape(value), np.nan), where=np.asarray(whole) > 0)
