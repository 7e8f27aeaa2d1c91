"""Statistics of a corpus, and their picture."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from models.corpus.measurements import Measurement
from models.corpus.relations import ancestors
from models.labels import ontology

SHOWN = 40  # classes in the picture's bars
QUIETEST = -80.0  # dBFS: the picture's left end


@dataclass(frozen=True)
class ClassCount:
    """One class: recordings labelled with it, their length in all and their median, their groups; `with_parts` also
    counts recordings that are labelled with classes below it in the ontology."""

    label: str
    mid: str
    clips: int
    minutes: float
    groups: int
    median_seconds: float
    with_parts: int


def count_classes(measurements: Iterable[Measurement]) -> list[ClassCount]:
    """Return the counts of every class that is a label or an ancestor of one, most minutes first."""
    lengths: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, set[str]] = defaultdict(set)
    with_parts: Counter[str] = Counter()
    for entry in measurements:
        for mid in entry.mids:
            lengths[mid].append(entry.seconds)
            groups[mid].add(entry.group)
        with_parts.update(set(entry.mids).union(*(ancestors(mid) for mid in entry.mids)))
    counts = [
        ClassCount(
            label=ontology()[mid].name,
            mid=mid,
            clips=len(lengths[mid]),
            minutes=sum(lengths[mid]) / 60,
            groups=len(groups[mid]),
            median_seconds=median(lengths[mid] or [0.0]),
            with_parts=count,
        )
        for mid, count in with_parts.items()
    ]
    return sorted(counts, key=lambda one: (-one.minutes, -one.with_parts, one.label))


def totals(measurements: list[Measurement]) -> dict[str, Any]:
    """Return sums over all recordings, by kind and by split, and the number with several labels."""

    def sums(entries: list[Measurement]) -> dict[str, float]:
        return {
            "clips": len(entries),
            "minutes": round(sum(entry.seconds for entry in entries) / 60, 2),
            "groups": len({entry.group for entry in entries}),
        }

    def by(name: str) -> dict[str, dict[str, float]]:
        parts: dict[str, list[Measurement]] = defaultdict(list)
        for entry in measurements:
            parts[getattr(entry, name)].append(entry)
        return {part: sums(entries) for part, entries in sorted(parts.items())}

    return sums(measurements) | {
        "classes": len({mid for entry in measurements for mid in entry.mids}),
        "several_labels": sum(len(entry.mids) > 1 for entry in measurements),
        "median_seconds": round(median(entry.seconds for entry in measurements), 3) if measurements else 0.0,
        "by_kind": by("kind"),
        "by_split": by("split"),
    }


def draw(measurements: list[Measurement], classes: list[ClassCount], path: Path, title: str) -> None:
    """Draw minutes of the largest classes, sizes of all, lengths and levels; the format follows from `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labelled = [one for one in classes if one.clips]
    largest = labelled[:SHOWN][::-1]
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.15, 1))
    bars = figure.add_subplot(grid[:, 0])
    bars.barh([one.label for one in largest], [one.minutes for one in largest], color="tab:blue")
    for row, one in enumerate(largest):
        bars.text(one.minutes, row, f" {one.clips} / {one.groups}", va="center", fontsize=7, color="0.35")
    bars.set(xscale="log", xlabel="minutes (clips / groups beside the bar)", ylim=(-0.6, len(largest) - 0.4))
    bars.margins(x=0.15)
    bars.tick_params(axis="y", labelsize=8)
    bars.set_title(f"the {len(largest)} largest of {len(labelled)} classes", fontsize=10)

    tail = figure.add_subplot(grid[0, 1])
    ranks = np.arange(1, len(labelled) + 1)
    tail.plot(ranks, [one.clips for one in sorted(labelled, key=lambda one: -one.clips)], label="clips")
    tail.plot(ranks, [one.groups for one in sorted(labelled, key=lambda one: -one.groups)], label="groups")
    tail.set(yscale="log", xlabel="class, by rank")
    tail.legend()

    kinds = sorted({entry.kind for entry in measurements})
    lengths = figure.add_subplot(grid[1, 1])
    seconds = [[entry.seconds for entry in measurements if entry.kind == kind] for kind in kinds]
    shortest, longest = (bound(entry.seconds for entry in measurements) for bound in (min, max))
    edges = np.geomspace(shortest, max(longest, shortest * 1.1), 41)
    lengths.hist(seconds, edges.tolist(), stacked=True, label=kinds)
    lengths.set(xscale="log", xlabel="length, s", ylabel="clips")
    lengths.legend()

    levels = figure.add_subplot(grid[2, 1])
    decibels = [[max(entry.level, QUIETEST) for entry in measurements if entry.kind == kind] for kind in kinds]
    levels.hist(decibels, np.arange(QUIETEST, 1, 2).tolist(), stacked=True, label=kinds)
    levels.set(xlabel=f"level, dBFS RMS (the first bar: {QUIETEST:g} and below)", ylabel="clips")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
