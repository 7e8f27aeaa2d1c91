"""`evaluate events`: how well a model's detector finds the start and end of sounds.

Event-based F1 with collars, and segment-based F1 over seconds (`event_counts`). Only classes of the references that the
detector predicts are scored. A detected class that is related to one in the scene (ancestor, descendant, ensemble),
without being in the scene itself, is ignored: it is neither right nor wrong. Events are smoothed and have hysteresis,
as in the service.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from torch import Tensor

from models.commands import Device, Weights
from models.console import console, progress_console
from models.corpus.decoded import load
from models.corpus.relations import are_related
from models.detection import timeline
from models.evaluation.arguments import Cache, Output, Plot
from models.evaluation.detectors import soundscapes, strong_labels
from models.evaluation.detectors.detector_under_test import DetectorAlone, DetectorUnderTest
from models.evaluation.detectors.event_counts import MEASURES, Counts, count
from models.evaluation.detectors.soundscapes import SCENES, SEED, KnownEvent, Scene
from models.evaluation.reports import group_bootstrap, json_report
from models.labels import ontology
from models.options import THRESHOLD

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class DetectedScene:
    """The reference events of a scene, and the detector's curve (F, 527) of it."""

    name: str
    seconds: float
    events: list[KnownEvent]
    curve: Tensor
    row_seconds: float


@dataclass(frozen=True)
class MeasureFigures:
    """F1 by one measure, over all classes together unless stated otherwise.

    f1, interval, mean_over_classes, by_class: of all scenes at the given threshold. curve: at each of `THRESHOLDS`.
    best_threshold: chosen on every other scene; best_f1: of the rest at that threshold.
    """

    f1: float
    interval: tuple[float, float]
    mean_over_classes: float
    by_class: dict[str, float]
    curve: list[float]
    best_threshold: float
    best_f1: float


@dataclass(frozen=True)
class Result:
    """Figures by measure; events: number of reference events. unheard: classes that the detector does not predict."""

    threshold: float
    measures: dict[str, MeasureFigures]
    scenes: int
    events: int
    unheard: list[str]


def evaluate_events(
    corpus: Annotated[
        Path | None, typer.Option(help="Compose soundscapes from this corpus's clips, whose labels have no times.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split of the corpus to compose from.")] = "valid",
    scenes: Annotated[int, typer.Option(help="How many soundscapes to compose.", min=4)] = SCENES,
    seed: Annotated[int, typer.Option(help="Seed of the soundscapes.")] = SEED,
    strong_table: Annotated[
        Path | None,
        typer.Option(
            "--strong",
            help="Or a table with times: filename, onset, offset, event_label (DESED) or segment_id,"
            " start_time_seconds, end_time_seconds, label (AudioSet strong), by tabs or commas.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="The table's recordings. Default: beside it.", exists=True, file_okay=False)
    ] = None,
    weights: Weights = "base",
    detector: DetectorAlone = None,
    threshold: Annotated[
        float, typer.Option(help="Probability that an event must reach.", min=0.001, max=1)
    ] = THRESHOLD,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
    plot: Plot = None,
) -> None:
    """Evaluate a model's detector: event-based and segment-based F1 on strongly labelled recordings or soundscapes."""
    if (corpus is None) == (strong_table is None):
        raise typer.BadParameter("give --corpus to compose soundscapes from, or --strong with a table of events")
    network = DetectorUnderTest.load(weights, detector, device)
    left_out = ""
    if corpus is not None:
        composed = soundscapes.compose(load(corpus, split, cache, progress_console.print), scenes, seed)
        detected = detect_scenes(
            network, track(composed, "detecting", scenes, console=progress_console, transient=True)
        )
        where = f"{scenes} soundscapes from {corpus.name}/{split}"
    else:
        assert strong_table is not None  # noqa: S101  one of both was given
        table = strong_labels.read(strong_table)
        files = strong_labels.scenes(table, audio or strong_table.parent)
        detected = detect_scenes(
            network, track(files, "detecting", len(table.events), console=progress_console, transient=True)
        )
        where = f"{len(detected)} recordings of {strong_table.name}"
        rows = sum(table.unknown.values())
        left_out = (
            f"Left out: {rows} rows of {len(table.unknown)} names that are no classes, {len(table.missing)} files."
        )
    found = measure(detected, network.class_mids, threshold)
    _print(found, f"{network.name} on {where}: {found.events} events")
    if left_out:
        console.print(left_out)
    if output:
        json_report.write({"model": network.name, "on": where, "thresholds": THRESHOLDS, **asdict(found)}, output)
    if plot:
        draw(found, detected, plot, network.name)


def detect_scenes(network: DetectorUnderTest, scenes: Iterable[Scene]) -> list[DetectedScene]:
    """Return the detector's curve of each scene, without the audio."""
    return [
        DetectedScene(scene.name, scene.seconds, scene.events, *network.curve(scene.samples, scene.rate))
        for scene in scenes
    ]


def measure(detected: Sequence[DetectedScene], class_mids: frozenset[str], threshold: float = THRESHOLD) -> Result:
    """Return the figures. Raises ValueError if fewer than two scenes have an event of a class of the detector."""
    named = {event.mid for scene in detected for event in scene.events}
    scored = sorted(named & class_mids)
    holding = sum(any(event.mid in class_mids for event in scene.events) for scene in detected)
    if holding < 2:
        raise ValueError(f"{holding} of {len(detected)} scenes hold an event of a class of the detector: too few")
    known, seconds = [scene.events for scene in detected], [scene.seconds for scene in detected]
    counted = {
        level: count(known, [answers(scene, scored, level) for scene in detected], seconds, scored)
        for level in sorted({*THRESHOLDS, threshold})
    }
    drawn = group_bootstrap.weights(range(len(detected)))
    return Result(
        threshold,
        {name: _figures_of(name, counted, threshold, scored, drawn) for name in MEASURES},
        len(detected),
        sum(event.mid in class_mids for events in known for event in events),
        sorted(_name(mid) for mid in named - class_mids),
    )


def _figures_of(
    name: str, counted: dict[float, dict[str, Counts]], threshold: float, scored: Sequence[str], drawn: np.ndarray
) -> MeasureFigures:
    given = counted[threshold][name]
    of_class = given.by_class()
    best = max(THRESHOLDS, key=lambda level: float(counted[level][name].half(0).f1()))
    return MeasureFigures(
        f1=float(given.f1()),
        interval=group_bootstrap.interval(given.f1(drawn)),
        mean_over_classes=float(np.nanmean(of_class)),
        by_class={_name(mid): float(f1) for mid, f1 in zip(scored, of_class, strict=True)},
        curve=[float(counted[level][name].f1()) for level in THRESHOLDS],
        best_threshold=best,
        best_f1=float(counted[best][name].half(1).f1()),
    )


def answers(scene: DetectedScene, scored: Sequence[str], threshold: float) -> list[KnownEvent]:
    """Return the detector's events of the scored classes, without relatives of the scene's classes."""
    there = {event.mid for event in scene.events}
    ignored = {mid for mid in scored if mid not in there and any(are_related(mid, other) for other in there)}
    counted = set(scored) - ignored
    found = timeline(scene.curve, scene.row_seconds, scene.seconds, top=1, threshold=threshold)
    return [KnownEvent(event.mid, event.start, event.end) for event in found.events if event.mid in counted]


def _name(mid: str) -> str:
    return ontology()[mid].name


def _print(found: Result, title: str) -> None:
    table = Table("F1", f"at {found.threshold:g}", "95 % of draws", "mean of classes", "best, other half", title=title)
    for name, one in found.measures.items():
        table.add_row(
            name,
            f"{one.f1:.3f}",
            f"{one.interval[0]:.3f} to {one.interval[1]:.3f}",
            f"{one.mean_over_classes:.3f}",
            f"{one.best_f1:.3f} at {one.best_threshold:g}",
        )
    console.print(table)
    classes = len(next(iter(found.measures.values())).by_class)
    console.print(
        f"Over {classes} classes together, draws of scenes. Best: one threshold for all classes, chosen on every other"
        " scene, with the F1 of the rest."
    )
    if found.unheard:
        console.print(f"Left out, since the detector does not predict them: {', '.join(found.unheard)}.")


def draw(found: Result, detected: Sequence[DetectedScene], path: Path, title: str) -> None:
    """Draw F1 over the threshold, and the reference events (above) and detected events (below) of the first scenes."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, lanes = figure.subplots(1, 2, width_ratios=(1, 1.6))
    places = range(len(THRESHOLDS))
    for name, one in found.measures.items():
        (line,) = curves.plot(places, one.curve, marker="o", markersize=4, label=name)
        curves.axhline(one.f1, color=line.get_color(), linestyle=":", linewidth=1)
    curves.set_xticks(places, [f"{level:g}" for level in THRESHOLDS])
    curves.set_xlabel(f"threshold; dotted: at {found.threshold:g}, the one in use")
    curves.set_ylabel("F1, all classes together")
    curves.set_ylim(bottom=0)
    curves.set_title(f"{title}: {found.events} events in {found.scenes} scenes")
    curves.grid(alpha=0.3)
    curves.legend()
    _draw_scenes(lanes, detected, found.threshold)
    figure.savefig(path, dpi=120)


def _draw_scenes(axes: Axes, detected: Sequence[DetectedScene], threshold: float, most: int = 30) -> None:
    scored = sorted({event.mid for scene in detected for event in scene.events})
    names: list[str] = []
    shown: list[DetectedScene] = []
    for scene in detected:
        answered = answers(scene, scored, threshold)
        mids = sorted({event.mid for event in [*scene.events, *answered]}, key=_name)
        if shown and len(names) + len(mids) > most:
            break
        for lane, mid in enumerate(mids, len(names)):
            for events, shift, colour in ((scene.events, -0.2, "0.35"), (answered, 0.2, "tab:orange")):
                spans = [(event.start, event.end - event.start) for event in events if event.mid == mid]
                axes.broken_barh(spans, (lane + shift - 0.18, 0.36), color=colour)
        names += [_name(mid) for mid in mids]
        shown.append(scene)
        axes.axhline(len(names) - 0.5, color="0.8", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, max(scene.seconds for scene in shown))
    axes.set_xlabel("seconds")
    axes.set_title(f"first scenes: known (grey) and answered at {threshold:g} (orange)")
