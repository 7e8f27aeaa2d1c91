"""Scores of separated songs: SDR on windows of 2 s as `museval` gives it, and on whole songs.

SDR of a window is 10 log10(|s|^2 / |s - e|^2) over both channels: of BSS Eval's four figures (version 4) it is the one
that does not depend on the distortion filters. A window in which any source or estimate is silent is left out for all
of them. A song's figure is the median over windows, the data set's the median over songs.

Letters: J stems, n samples, C channels, N windows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.evaluation.reports import group_bootstrap
from models.validation.metrics import sdr, si_sdr

WINDOW_SECONDS = 2.0


@dataclass(frozen=True)
class StemScores:
    """One stem of one song, in dB. windows: SDR of each, NaN where something is silent; sdr, si_sdr: of the whole
    song, both channels as one vector, NaN where the stem is silent."""

    windows: list[float]
    sdr: float
    si_sdr: float

    @property
    def median(self) -> float:
        """Median over the windows; NaN if all are left out."""
        return _median(np.array(self.windows))


def score(references: np.ndarray, estimates: np.ndarray, rate: int, direct: bool = False) -> list[StemScores]:
    """Return the scores of estimates of stems, both (J, n, C); of different lengths the shorter is used.

    direct: SDR by its formula rather than by museval, which also computes three unused figures.
    """
    frames = min(references.shape[1], estimates.shape[1])
    references, estimates = (np.asarray(some[:, :frames], dtype=np.float64) for some in (references, estimates))
    window = int(WINDOW_SECONDS * rate)
    # A stem that is silent in the whole song has no SDR, and would leave no windows for the others.
    audible = ~(_silent(references) | _silent(estimates))
    of_window = _direct if direct else _museval
    windows = np.full((len(references), max(1, frames // window)), np.nan)
    if audible.any():
        windows[audible] = of_window(references[audible], estimates[audible], window)
    scores = []
    for reference, estimate, figures in zip(references, estimates, windows, strict=True):
        target, answer = torch.from_numpy(reference).flatten(), torch.from_numpy(estimate).flatten()
        sounds = bool(target.any())
        scores.append(
            StemScores(
                figures.tolist(),
                sdr(answer, target).item() if sounds else float("nan"),
                si_sdr(answer, target).item() if sounds else float("nan"),
            )
        )
    return scores


def _museval(references: np.ndarray, estimates: np.ndarray, window: int) -> np.ndarray:
    """Return SDR (J, N) by museval, version 4: one set of distortion filters for the whole song."""
    import museval

    with warnings.catch_warnings():
        # museval imports numpy's LinAlgError from a deprecated path.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="museval")
        return museval.evaluate(references, estimates, win=window, hop=window, mode="v4")[0]


def _direct(references: np.ndarray, estimates: np.ndarray, window: int) -> np.ndarray:
    """Return SDR (J, N) by the formula, with museval's windows: a rest is left out; a short song is one window."""
    whole = max(1, references.shape[1] // window) * window
    figures = []
    for start in range(0, whole, window):
        some, made = references[:, start : start + window], estimates[:, start : start + window]
        if _silent(some).any() or _silent(made).any():
            figures.append(np.full(len(references), np.nan))
            continue
        with np.errstate(divide="ignore"):  # infinite for a perfect estimate, as in museval
            figures.append(10 * np.log10(np.square(some).sum((1, 2)) / np.square(some - made).sum((1, 2))))
    return np.stack(figures, axis=1)


def _silent(signals: np.ndarray) -> np.ndarray:
    """Return which of (J, n, C) are silent, (J,), by museval's definition: the channels' sum is 0 throughout."""
    return (signals.sum(axis=2) == 0).all(axis=1)


@dataclass(frozen=True)
class Figure:
    """A figure over songs, the interval that covers 95 % of draws of songs, and the number of songs."""

    value: float
    low: float
    high: float
    songs: int


def median_of_medians(songs: Sequence[StemScores]) -> Figure:
    """Return the figure of the paper's table: the median over songs of their medians over windows."""
    return _over_songs([song.median for song in songs], _median)


def mean(values: Sequence[float]) -> Figure:
    """Return the mean over the songs that have a value."""
    return _over_songs(values, lambda some: float(some.mean()) if len(some) else float("nan"))


def _over_songs(values: Sequence[float], statistic) -> Figure:
    counted = np.array([value for value in values if not np.isnan(value)])
    if not len(counted):
        return Figure(float("nan"), float("nan"), float("nan"), 0)
    drawn = group_bootstrap.weights(range(len(counted)))
    low, high = group_bootstrap.interval(np.array([statistic(np.repeat(counted, times)) for times in drawn]))
    return Figure(statistic(counted), low, high, len(counted))


def _median(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(np.median(counted)) if len(counted) else float("nan")
