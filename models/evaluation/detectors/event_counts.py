"""Counts of detected and reference events by class, by `sed_eval`.

Event-based as in DCASE: an event is found if its class is right, its onset within a collar, and its offset within the
collar or a fifth of the event's length. Segment-based: a class is present in each second or not.

Letters: S scenes, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.evaluation.detectors.soundscapes import KnownEvent

OFFSET_SHARE = 0.2  # tolerance of an event's offset, as a share of its length, if larger than the collar
MEASURES = ("events, collar 0.2 s", "events, collar 0.5 s", "segments of 1 s")
_COLLARS = {"events, collar 0.2 s": 0.2, "events, collar 0.5 s": 0.5}
_SEGMENT_SECONDS = 1.0


@dataclass(frozen=True)
class Counts:
    """Counts by scene and class (S, C): correct detections, reference events, detections."""

    found: np.ndarray
    known: np.ndarray
    answered: np.ndarray

    def f1(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return F1 over all classes together; weights (..., S) of scenes -> (...)."""
        totals = [counts.sum(axis=1) for counts in (self.found, self.known, self.answered)]
        if weights is None:
            weights = np.ones(len(self.found))
        return _f1(*(weights @ total for total in totals))

    def by_class(self) -> np.ndarray:
        """Return F1 of each class (C,); NaN for a class without reference events."""
        f1 = _f1(*(counts.sum(axis=0) for counts in (self.found, self.known, self.answered)))
        return np.where(self.known.sum(axis=0) > 0, f1, np.nan)

    def half(self, first: int) -> "Counts":
        """Return the counts of every other scene, starting with `first`."""
        return Counts(self.found[first::2], self.known[first::2], self.answered[first::2])


def count(
    scenes: Sequence[Sequence[KnownEvent]],
    answered: Sequence[Sequence[KnownEvent]],
    seconds: Sequence[float],
    scored: Sequence[str],
) -> dict[str, Counts]:
    """Count reference and detected events of each scene by each of `MEASURES`; seconds: of each scene."""
    place = {mid: column for column, mid in enumerate(scored)}
    shape = (len(scenes), len(scored))
    counts = {name: Counts(*(np.zeros(shape) for _ in range(3))) for name in MEASURES}
    for row, (there, events, length) in enumerate(zip(scenes, answered, seconds, strict=True)):
        known = [event for event in there if event.mid in place]
        mids = sorted({event.mid for event in [*known, *events]})
        if not mids:
            continue
        for name in MEASURES:
            for mid, of_class in _count_scene(name, mids, known, events, length).items():
                counts[name].found[row, place[mid]] = of_class["Ntp"]
                counts[name].known[row, place[mid]] = of_class["Nref"]
                counts[name].answered[row, place[mid]] = of_class["Nsys"]
    return counts


def _count_scene(
    name: str, mids: list[str], known: Sequence[KnownEvent], answered: Sequence[KnownEvent], seconds: float
) -> dict[str, dict[str, float]]:
    """Return sed_eval's counts of one scene by class."""
    from sed_eval.sound_event import EventBasedMetrics, SegmentBasedMetrics

    if name in _COLLARS:
        metric: Any = EventBasedMetrics(mids, t_collar=_COLLARS[name], percentage_of_length=OFFSET_SHARE)
        metric.evaluate(_as_sed_eval(known), _as_sed_eval(answered))
    else:
        metric = SegmentBasedMetrics(mids, time_resolution=_SEGMENT_SECONDS)
        metric.evaluate(_as_sed_eval(known), _as_sed_eval(answered), evaluated_length_seconds=seconds)
    return metric.class_wise


def _as_sed_eval(events: Sequence[KnownEvent]) -> list[dict[str, Any]]:
    return [{"event_label": one.mid, "event_onset": one.start, "event_offset": one.end} for one in events]


def _f1(found: np.ndarray, known: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Return 2 found / (known + answered); 0 if both are 0."""
    either = np.asarray(known + answered, dtype=np.float64)
    return np.divide(2 * found, either, out=np.zeros_like(either), where=either > 0)
