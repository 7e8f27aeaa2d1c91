"""Which sounds a recording holds, so that all of them can be taken out: from a detection to classes and their spans.

A detector hears a dog as a dog, as its bark, as a domestic animal and as an animal. One class of a lineage stands for
the sound: the most specific one that is nearly as sure as what it belongs to. Silence, and the rooms and places in
which sounds are heard, are classes too, and no sounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models import labels
from models.detection import RELEASE, Detection, smooth, spans
from models.labels import Label

MOST = 8  # classes
THRESHOLD = 0.3  # of a class's probability
_NOT_SOUNDS = {"Silence", "Acoustic environment"}  # and what belongs to them
_NEARLY_AS_SURE = 0.75  # of its ancestor's probability, from which on a class stands for it
_SURE = 0.5  # the probability from which on a class is taken to be what sounds
_LONGEST_SECONDS = 10.0  # of all spans of a class: more says no more about its sound


@dataclass(frozen=True)
class AutoTarget:
    """A class that is heard with `probability`, where it is surest: (start, end) in seconds, the surest first.

    alone: whether nothing else that is heard sounds there; else the spans hold other sounds too.
    """

    label: Label
    probability: float
    spans: list[tuple[float, float]]
    alone: bool


def choose_targets(found: Detection, most: int = MOST, threshold: float = THRESHOLD) -> list[AutoTarget]:
    """The sounds of a recording, the surest first: at most `most`, each with a probability of `threshold` or more.

    `found` must have been made with tags for all classes (`top=labels.CLASSES`).
    """
    probabilities = {tag.mid: tag.probability for tag in found.tags if tag.probability >= threshold}
    known = [label for label in map(labels.find, probabilities) if not _NOT_SOUNDS.intersection(label.path)]
    chosen = most_specific(known, probabilities)
    chosen = sorted(chosen, key=lambda label: -probabilities[label.mid])[:most]
    curves = {label.mid: smooth(found.framewise[:, _column(label)].numpy(), found.frame_seconds) for label in chosen}
    return [_target(label, chosen, curves, found) for label in chosen]


def most_specific(known: Sequence[Label], probabilities: dict[str, float]) -> list[Label]:
    """Of classes with these probabilities, by mid, those that stand for their lineages: none is another's ancestor."""
    kept: list[Label] = []
    for label in sorted(known, key=lambda label: len(label.path)):
        enough = _NEARLY_AS_SURE * probabilities[label.mid]
        below = [other for other in known if other is not label and _is_below(other, label)]
        if any(_is_below(label, other) for other in kept) or any(probabilities[low.mid] >= enough for low in below):
            continue
        kept.append(label)
    return kept


def _is_below(label: Label, other: Label) -> bool:
    return label.path[: len(other.path)] == other.path


def _target(label: Label, chosen: list[Label], curves: dict[str, np.ndarray], found: Detection) -> AutoTarget:
    curve = curves[label.mid]
    others = np.zeros_like(curve)
    for other in chosen:
        if other is not label:
            others = np.maximum(others, curves[other.mid])
    sure = min(_SURE, float(curve.max()))
    alone = np.where(others < RELEASE * THRESHOLD, curve, 0.0)
    by_itself = bool(alone.max() >= _SURE)
    rows = spans(alone if by_itself else curve, sure, sure)
    rows.sort(key=lambda span: -float(curve[span[0] : span[1]].max()))
    return AutoTarget(label, float(curve.max()), _seconds(rows, found), by_itself)


def _seconds(rows: list[tuple[int, int]], found: Detection) -> list[tuple[float, float]]:
    """Rows as seconds within the recording, up to `_LONGEST_SECONDS` of them together."""
    taken: list[tuple[float, float]] = []
    left = _LONGEST_SECONDS
    for first, end in rows:
        start, stop = first * found.frame_seconds, min(end * found.frame_seconds, found.duration)
        stop = min(stop, start + left)
        if stop > start:
            taken.append((start, stop))
            left -= stop - start
        if left <= 0:
            break
    return taken


def _column(label: Label) -> int:
    assert label.index is not None  # noqa: S101  (tags are of classes with a column)
    return label.index
