"""`evaluate tagging`: how well a model's detector ranks the classes of clips.

Labels of clips are incomplete. A clip of a class is one of its ancestors' too; a clip of an ancestor, or of an ensemble
that contains the class, may hold the class or not: it is left out of that class's ranking. The classes are those of the
clips' labels that the detector predicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table

from models.commands import Device, Weights
from models.console import console, progress_console
from models.corpus.clips import RATE, Clip
from models.corpus.decoded import load
from models.corpus.relations import self_and_ancestors, uncertain_classes
from models.evaluation.arguments import Cache, Output
from models.evaluation.detectors.detector_under_test import DetectorAlone, DetectorUnderTest
from models.evaluation.detectors.ranking import area_under_curve, average_precision, d_prime
from models.evaluation.reports import group_bootstrap, json_report
from models.evaluation.reports.group_bootstrap import interval
from models.labels import ontology

_SHOWN = 8  # of the best and of the worst classes


@dataclass(frozen=True)
class ClassFigures:
    """A class's average precision with its interval, and the area under its curve.

    clips, groups: in which it is present; left_out: clips for which that is unknown.
    """

    label: str
    mid: str
    clips: int
    groups: int
    left_out: int
    average_precision: float
    low: float
    high: float
    area: float


@dataclass(frozen=True)
class Tagging:
    """Means over classes, each with an interval over draws of source groups; chance: of random scores.

    unheard, few: classes left out since the detector does not predict them, or since they have too few groups.
    """

    mean_average_precision: float
    mean_average_precision_interval: tuple[float, float]
    area: float
    area_interval: tuple[float, float]
    d_prime: float
    chance: float
    clips: int
    groups: int
    classes: list[ClassFigures]
    unheard: list[str]
    few: list[str]


def evaluate_tagging(
    corpus: Annotated[Path, typer.Option(help="A corpus of labelled clips in any supported format.")],
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "valid",
    weights: Weights = "base",
    detector: DetectorAlone = None,
    least_groups: Annotated[int, typer.Option(help="Leave out classes of fewer source groups.", min=1)] = 1,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of all classes, such as out.png.", dir_okay=False)] = None,
) -> None:
    """Evaluate a model's detector on labelled clips: mean average precision, area under the curve, d'."""
    network = DetectorUnderTest.load(weights, detector, device)
    clips = load(corpus, split, cache, progress_console.print)
    shown = track(clips.clips, "detecting", console=progress_console, transient=True)
    scores = np.stack([network.clipwise(clips.waveform(clip), RATE) for clip in shown])
    found = measure(scores, clips.clips, network.class_mids, least_groups)
    _print(found, f"{network.name} on {corpus.name}/{split}: {found.clips} clips of {found.groups} source groups")
    if output:
        json_report.write(
            {"model": network.name, "split": split, "least_groups": least_groups, **asdict(found)}, output
        )
    if plot:
        draw(found, plot, network.name)


def measure(scores: np.ndarray, clips: Sequence[Clip], class_mids: frozenset[str], least_groups: int = 1) -> Tagging:
    """Return figures of scores (N, 527) of clips. Raises ValueError if no class can be evaluated."""
    labelled = sorted({mid for clip in clips for mid in clip.mids}, key=lambda mid: ontology()[mid].name)
    there, counted = truth(clips, labelled)
    groups = np.array([clip.group for clip in clips])
    drawn = group_bootstrap.weights(groups.tolist())
    classes: list[ClassFigures] = []
    precisions, areas = [], []
    unheard, few = [], []
    for column, mid in enumerate(labelled):
        label, some = ontology()[mid], counted[:, column]
        positive = there[some, column]
        of_class = len(set(groups[some][positive]))
        if label.index is None or mid not in class_mids:
            unheard.append(label.name)
        elif of_class < least_groups or positive.all():
            few.append(label.name)
        else:
            ranked = scores[some, label.index]
            weights = redrawn(drawn[:, some], positive)
            precisions.append(average_precision(ranked, positive, weights))
            areas.append(area_under_curve(ranked, positive, weights))
            classes.append(
                ClassFigures(
                    label.name,
                    mid,
                    int(positive.sum()),
                    of_class,
                    int((~some).sum()),
                    float(average_precision(ranked, positive)),
                    *interval(precisions[-1]),
                    float(area_under_curve(ranked, positive)),
                )
            )
    if not classes:
        raise ValueError(
            f"no class can be measured: {len(unheard)} are not among the detector's, {len(few)} have fewer than"
            f" {least_groups} source groups or no other clips"
        )
    area = _mean(classes, lambda one: one.area)
    return Tagging(
        mean_average_precision=_mean(classes, lambda one: one.average_precision),
        mean_average_precision_interval=interval(_mean_of_draws(precisions)),
        area=area,
        area_interval=interval(_mean_of_draws(areas)),
        d_prime=d_prime(area),
        chance=_mean(classes, lambda one: one.clips / (len(clips) - one.left_out)),
        clips=len(clips),
        groups=len(set(groups)),
        classes=classes,
        unheard=unheard,
        few=few,
    )


def truth(clips: Sequence[Clip], mids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each class is present in each clip, and whether the clip's labels determine that: (N, C) bool."""
    there = np.zeros((len(clips), len(mids)), dtype=bool)
    counted = np.ones_like(there)
    for row, clip in enumerate(clips):
        known = frozenset().union(*(self_and_ancestors(mid) for mid in clip.mids))
        open_to_doubt = frozenset().union(*(uncertain_classes(mid) for mid in clip.mids)) - known
        there[row] = [mid in known for mid in mids]
        counted[row] = [mid not in open_to_doubt for mid in mids]
    return there, counted


def redrawn(drawn: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return draws (draws, N) in which clips of the class are resampled with constant total weight, and others are not.

    Otherwise draws would be easier than the clips: precision rises with the share of positives, and a single clip
    ranked above the right one is missing from a third of the draws. A draw may hold no clip of the class.
    """
    weights = np.where(positive, drawn, 1.0)
    whole = weights[:, positive].sum(axis=1, keepdims=True)
    weights[:, positive] *= np.divide(positive.sum(), whole, out=np.zeros_like(whole), where=whole > 0)
    return weights


def _mean(classes: Sequence[ClassFigures], figure: Callable[[ClassFigures], float]) -> float:
    return float(np.mean([figure(one) for one in classes]))


def _mean_of_draws(figures: list[np.ndarray]) -> np.ndarray:
    """Return the mean of each draw (draws,) over the classes that it holds."""
    table = np.stack(figures)
    there = ~np.isnan(table)
    held = there.sum(axis=0)
    return np.divide(np.where(there, table, 0).sum(axis=0), held, out=np.full(len(held), np.nan), where=held > 0)


def _print(found: Tagging, title: str) -> None:
    low, high = found.mean_average_precision_interval
    area_low, area_high = found.area_interval
    table = Table("figure", "value", "95 % of draws of groups", title=title)
    table.add_row("mean average precision", f"{found.mean_average_precision:.3f}", f"{low:.3f} to {high:.3f}")
    table.add_row("the same by chance", f"{found.chance:.3f}", "")
    table.add_row("area under the curve", f"{found.area:.4f}", f"{area_low:.4f} to {area_high:.4f}")
    spread = f"{d_prime(area_low):.2f} to {d_prime(area_high):.2f}"
    table.add_row("d' of that area", f"{found.d_prime:.2f}", spread)
    console.print(table)
    console.print(
        f"Means over {len(found.classes)} classes. Left out: {len(found.few)} with too few source groups"
        f", {len(found.unheard)} that the detector does not predict"
        + (f" ({', '.join(found.unheard)})." if found.unheard else ".")
    )
    ranked = sorted(found.classes, key=lambda one: -one.average_precision)
    by_class = Table("class", "clips", "groups", "average precision", "area", title="best and worst classes")
    for place, one in enumerate(ranked):
        if place < _SHOWN or place >= len(ranked) - _SHOWN:
            precision = f"{one.average_precision:.2f} [{one.low:.2f}, {one.high:.2f}]"
            ends = place == _SHOWN - 1 and len(ranked) > 2 * _SHOWN
            by_class.add_row(one.label, str(one.clips), str(one.groups), precision, f"{one.area:.3f}", end_section=ends)
    console.print(by_class)


def draw(found: Tagging, path: Path, title: str) -> None:
    """Draw the average precision of every class with its interval, best on top; darker for more source groups."""
    ranked = sorted(found.classes, key=lambda one: one.average_precision)
    figure = Figure(figsize=(8, 1.5 + 0.17 * len(ranked)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = np.arange(len(ranked))
    axes.hlines(rows, [one.low for one in ranked], [one.high for one in ranked], "0.75", linewidth=2)
    groups = np.array([one.groups for one in ranked])
    dots = axes.scatter(
        [one.average_precision for one in ranked], rows, 22, np.log2(groups), cmap="viridis_r", zorder=2
    )
    axes.axvline(found.mean_average_precision, color="tab:red", linestyle="--", linewidth=1)
    axes.text(found.mean_average_precision, len(ranked), f" mean {found.mean_average_precision:.2f}", color="tab:red")
    axes.set_yticks(rows, [one.label for one in ranked], fontsize=7)
    axes.set_ylim(-1, len(ranked) + 1)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("average precision, with the middle 95 % of draws of source groups")
    axes.set_title(f"{title}: {len(ranked)} classes")
    axes.grid(axis="x", alpha=0.3)
    ticks = range(int(np.log2(groups.max())) + 1)
    bar = figure.colorbar(dots, ax=axes, ticks=list(ticks), label="source groups", shrink=0.5)
    bar.ax.set_yticklabels([str(2**tick) for tick in ticks])
    figure.savefig(path, dpi=120)
