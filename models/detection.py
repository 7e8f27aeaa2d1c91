"""Recordings to tags and a timeline of events.

The detector runs over windows that overlap; only the middle of each is kept, so that seams lose nothing. An event is a
span where a class's smoothed curve exceeds a threshold, extended to where it falls below a lower one (hysteresis, as in
DCASE's sound event detection baselines).

Letters: F rows of the framewise curve, C classes, n samples.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import labels
from models.errors import Cancelled
from models.networks import Detector
from models.options import THRESHOLD, TOP

RELEASE = 0.5  # times the threshold, where an event ends
_MINIMUM_ROWS = 1024  # that a timeline has room for from the beginning
_SMOOTHING_SECONDS = 0.5  # median filter; not smaller than one row
# Times the window: up to this length, what is left of a recording is one window, where a detector takes any length. So
# a recording of 10 s is one.
_LONGEST = 1.5


@dataclass(frozen=True)
class Tag:
    """A class detected somewhere in the recording; `probability` is the highest of its smoothed curve."""

    label: str
    mid: str
    probability: float


@dataclass(frozen=True)
class Event:
    """A class detected from `start` to `end` seconds; `confidence` is its curve's highest value there."""

    label: str
    mid: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Detection:
    """Tags by falling probability, events by time. framewise: (F, 527), row i covers [i, i + 1) * frame_seconds."""

    tags: list[Tag]
    events: list[Event]
    framewise: Tensor
    frame_seconds: float
    duration: float


def row_seconds(detector: Detector) -> float:
    """Return the length of one row of a timeline in seconds."""
    return detector.frame_seconds * detector.rows_held


def longest_window(detector: Detector) -> int:
    """Return the samples of the longest recording whose timeline is one window."""
    return detector.window_samples if detector.reach_rows is None else round(_LONGEST * detector.window_samples)


def row_count(samples: int, detector: Detector) -> int:
    """Return the number of rows of a recording of so many samples, at least 1."""
    return max(1, math.ceil(samples / (row_seconds(detector) * detector.rate)))


def last_window(samples: Tensor, detector: Detector) -> Tensor:
    """Return what is left of a recording (n,) as a window, ended by silence: whole rows, or the detector's length."""
    size = detector.window_samples
    if detector.reach_rows is not None:
        size = round(row_count(len(samples), detector) * row_seconds(detector) * detector.rate)
    return F.pad(samples, (0, size - len(samples)))


class Timeline:
    """Framewise curve (F, C) of a mono recording at the detector's rate, computed block by block.

    Windows have the detector's own `window_samples` and overlap by the rows that its rows reach, or by half; a row is
    taken from the window whose middle it is closest to. Rows that depend on more than their own frame are thus never
    computed at a window's edge.
    """

    def __init__(self, detector: Detector, infer: Callable[[Tensor], Tensor]) -> None:
        """infer: windows (1, T) -> framewise (1, rows, C)."""
        self._detector = detector
        self._infer = infer
        self._repeats = detector.rows_held
        self._frame = row_seconds(detector) * detector.rate  # samples a row
        self._size = detector.window_samples
        rows, reach = round(self._size / self._frame), detector.reach_rows
        self._stride_rows = rows // 2 if reach is None else rows - 2 * reach
        self._margin_rows = (rows - self._stride_rows) // 2
        self._waiting = torch.zeros(0)
        self._start_row = 0  # the row at which the window that begins `_waiting` begins
        # One tensor that doubles: small ones kept between the large ones of windows would keep the heap from shrinking.
        self._kept = torch.empty(0, 0)
        self._count = 0

    def add(self, block: Tensor) -> None:
        """Add the next samples (n,)."""
        self._waiting = torch.cat([self._waiting, block])
        # One sample more than the longest window: then it is not the last.
        while len(self._waiting) > longest_window(self._detector):
            rows = self._rows_of(self._waiting[: self._size])
            self._keep(rows[: self._margin_rows + self._stride_rows])
            before = self._first_sample(self._start_row)
            self._start_row += self._stride_rows
            self._waiting = self._waiting[self._first_sample(self._start_row) - before :]

    def finish(self) -> Tensor:
        """Return the whole curve (F, C) of the recording."""
        samples = self._first_sample(self._start_row) + len(self._waiting)
        rows = row_count(samples, self._detector)
        self._keep(self._rows_of(last_window(self._waiting, self._detector))[: rows - self._start_row])
        return self._kept[: self._count].clone()

    def _rows_of(self, window: Tensor) -> Tensor:
        # Keep one row of each that the network repeats: with all repeats, two hours would be 1.5 GB.
        return self._infer(window[None])[0][:: self._repeats]

    def _first_sample(self, row: int) -> int:
        return round(row * self._frame)

    def _keep(self, rows: Tensor) -> None:
        """Keep the rows of the window at `_start_row` that earlier windows have not kept."""
        new = rows[self._count - self._start_row :]
        if self._count + len(new) > len(self._kept):
            larger = new.new_empty(max(_MINIMUM_ROWS, 2 * (self._count + len(new))), new.shape[1])
            if self._count:
                larger[: self._count] = self._kept[: self._count]
            self._kept = larger
        self._kept[self._count : self._count + len(new)] = new
        self._count += len(new)


def spans(curve: np.ndarray, threshold: float, release: float) -> list[tuple[int, int]]:
    """Return the spans, as [first, end) rows, where a curve (F,) reaches `threshold`, extended while it is `release` or
    more.

    The spans are disjoint and in order; each holds at least one row that reaches the threshold.
    """
    if curve.max(initial=0) < threshold:
        return []
    above = np.concatenate([[False], curve >= min(release, threshold), [False]])
    edges = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)
    return [(int(first), int(end)) for first, end in edges if curve[first:end].max() >= threshold]


def smooth(curve: np.ndarray, frame_seconds: float) -> np.ndarray:
    """Apply a median filter of half a second: it removes shorter peaks and keeps edges in place."""
    width = max(1, round(_SMOOTHING_SECONDS / frame_seconds)) // 2 * 2 + 1
    if width == 1:
        return curve
    padded = np.pad(curve, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1).astype(curve.dtype)


def timeline(
    framewise: Tensor, frame_seconds: float, duration: float, top: int = TOP, threshold: float = THRESHOLD
) -> Detection:
    """Return tags and events of a framewise curve (F, 527).

    An event begins and ends where the class's smoothed curve crosses half of `threshold` (`RELEASE`), and reaches
    `threshold` in between. Tags are the `top` classes, whatever their probability.
    """
    curves = framewise.numpy()
    peaks = curves.max(axis=0)
    # A median never exceeds its inputs, so other classes can be neither events nor tags.
    likely = np.argsort(-peaks, kind="stable")[: max(4 * top, int((peaks >= threshold).sum()))]
    tags, events = [], []
    for index in likely:
        label = labels.classes()[index]
        curve = smooth(curves[:, index], frame_seconds)
        tags.append(Tag(label.name, label.mid, float(curve.max())))
        for first, end in spans(curve, threshold, RELEASE * threshold):
            start, stop = round(first * frame_seconds, 3), min(round(end * frame_seconds, 3), duration)
            events.append(Event(label.name, label.mid, start, stop, float(curve[first:end].max())))
    tags.sort(key=lambda tag: -tag.probability)
    events.sort(key=lambda event: (event.start, -event.confidence))
    return Detection(tags[:top], events, framewise, frame_seconds, duration)


def framewise(
    detector: Detector,
    blocks: Iterable[Tensor],
    infer: Callable[[Tensor], Tensor],
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, int]:
    """Mono blocks (n,) at the detector's rate -> curve (F, C) and the number of samples. Raises Cancelled."""
    curve = Timeline(detector, infer)
    samples = 0
    for block in blocks:
        if cancelled():
            raise Cancelled("the detection was cancelled")
        curve.add(block)
        samples += len(block)
    return curve.finish(), samples
