"""Automatic targets: the classes detected in a recording, and spans of it that serve as their examples.

A detector reports a dog as a dog, as its bark, as a domestic animal and as an animal. One class of a lineage becomes
the target: the most specific one whose probability is close to its ancestor's. Silence and acoustic environments are
classes too, but no targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from models import labels
from models.detection import RELEASE, Detection, smooth, spans
from models.labels import Label
from models.options import DEFAULT_AUTO

SAME_SOUND = 0.9  # correlation of two stems from which both hold one sound: the residual would lack it twice
# Of each class's spans, and of all classes together: they are separated, in memory, to compare the stems.
_COMPARED_SECONDS, _COMPARED_IN_ALL = 4.0, 20.0
_NOT_SOUNDS = {"Silence", "Acoustic environment"}  # and what belongs to them
_NEARLY_AS_SURE = 0.75  # share of its ancestor's probability from which a class replaces it
_SURE = 0.5  # probability from which a row of a class's curve belongs to a span
_LONGEST_SECONDS = 10.0  # of all spans of a class: more do not improve the query


@dataclass(frozen=True)
class AutoTarget:
    """A detected class with its `probability`, and spans of it, (start, end) in seconds, by falling probability.

    alone: whether no other target sounds in the spans.
    """

    label: Label
    probability: float
    spans: list[tuple[float, float]]
    alone: bool


def choose_targets(
    found: Detection, most: int = DEFAULT_AUTO.most, threshold: float = DEFAULT_AUTO.threshold
) -> list[AutoTarget]:
    """Return up to `most` targets by falling probability, each with a probability of `threshold` or more.

    `found` needs tags for all classes (`top=labels.CLASSES`).
    """
    probabilities = {tag.mid: tag.probability for tag in found.tags if tag.probability >= threshold}
    known = [label for label in map(labels.find, probabilities) if not _NOT_SOUNDS.intersection(label.path)]
    chosen = most_specific(known, probabilities)
    chosen = sorted(chosen, key=lambda label: -probabilities[label.mid])[:most]
    curves = {label.mid: smooth(found.framewise[:, _column(label)].numpy(), found.frame_seconds) for label in chosen}
    return [_target(label, chosen, curves, found) for label in chosen]


def compared_spans(targets: Sequence[AutoTarget]) -> list[tuple[float, float]]:
    """Return the parts of the recording, in seconds and in order, that suffice to compare the targets' stems."""
    joined: list[tuple[float, float]] = []
    share = min(_COMPARED_SECONDS, _COMPARED_IN_ALL / max(1, len(targets)))
    for start, end in sorted(span for target in targets for span in _first_seconds(target.spans, share)):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def same_sounds(stems: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each stem (channels, samples) that holds the sound of one before it, the name of that one.

    Classes are words, and a detector finds several for one sound: a bird that is heard as a chirp, as a cricket and as
    environmental noise would be separated three times.
    """
    found: dict[str, str] = {}
    directions: dict[str, Tensor] = {}
    for name, stem in stems.items():
        direction = F.normalize(stem.flatten(), dim=0)
        alike = (other for other, known in directions.items() if direction @ known >= SAME_SOUND)
        before = next(alike, None)
        if before is None:
            directions[name] = direction
        else:
            found[name] = before
    return found


def most_specific(known: Sequence[Label], probabilities: dict[str, float]) -> list[Label]:
    """Return the most specific classes of their lineages by probability (by mid): none is another's ancestor."""
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
    alone = np.where(others < RELEASE * DEFAULT_AUTO.threshold, curve, 0.0)
    by_itself = bool(alone.max() >= _SURE)
    rows = spans(alone if by_itself else curve, sure, sure)
    rows.sort(key=lambda span: -float(curve[span[0] : span[1]].max()))
    return AutoTarget(label, float(curve.max()), _seconds(rows, found), by_itself)


def _seconds(rows: list[tuple[int, int]], found: Detection) -> list[tuple[float, float]]:
    """Convert rows to seconds within the recording, up to `_LONGEST_SECONDS` of them together."""
    all_of_them = [(first * found.frame_seconds, min(end * found.frame_seconds, found.duration)) for first, end in rows]
    return _first_seconds(all_of_them, _LONGEST_SECONDS)


def _first_seconds(spans_by_rank: Sequence[tuple[float, float]], left: float) -> list[tuple[float, float]]:
    taken: list[tuple[float, float]] = []
    for start, end in spans_by_rank:
        stop = min(end, start + left)
        if stop > start:
            taken.append((start, stop))
            left -= stop - start
        if left <= 0:
            break
    return taken


def _column(label: Label) -> int:
    assert label.index is not None  # noqa: S101  (tags are of classes with a column)
    return label.index
