"""`evaluate worst`: tables of a model's failures, and a picture of the mixtures with the lowest gain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from models.commands import Device
from models.console import console, count_bar, progress_console
from models.corpus.clips import RATE
from models.corpus.decoded import load
from models.evaluation import failures, reporting_mixtures
from models.evaluation.arguments import Cache, WeightsOrRun
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.evaluation.failures import GAIN, PROPERTIES, Property
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.reporting_mixtures import MixtureRow, render
from models.evaluation.reports import comparison, json_report
from models.evaluation.reports.comparison import Figures
from models.evaluation.reports.summaries import decibels, percent, plain, table_of, with_interval
from models.plots import save_small
from models.spectrum import mel_bands, stft
from models.validation.rendering import Sounds

SHOWN = 10
PICTURE_BANDS, PICTURE_HOP = 64, 640
RANGE_DB, STEP_DB = 60.0, 4.0  # below a picture's loudest point, which is the darkest; steps keep the file small


@dataclass(frozen=True)
class Shown:
    """A mixture in the picture: waveforms by title, and its caption."""

    about: str
    waveforms: dict[str, np.ndarray]


def evaluate_worst(
    corpus: Annotated[Path, typer.Option(help="Folder with the corpus that the figures are of.")],
    figures: Annotated[Path, typer.Option(help="JSON that `evaluate mixtures` wrote.", exists=True, dir_okay=False)],
    weights: WeightsOrRun = "base",
    list_file: Annotated[
        Path,
        typer.Option(
            "--list", help="The list of the figures.", exists=True, dir_okay=False, show_default="the committed list"
        ),
    ] = reporting_mixtures.REPORTING,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Annotated[Path | None, typer.Option(help="JSON file for the tables.", dir_okay=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the worst, such as worst.png.", dir_okay=False)] = None,
) -> None:
    """Analyse a model's failures: gains by properties of mixtures and queries, and spectrograms of the worst."""
    measured = comparison.read(figures)
    bundle = load_bundle(weights)
    subject = ModelUnderTest(bundle, device)
    if measured.model != subject.model_id or measured.digest != reporting_mixtures.digest(list_file):
        raise ValueError(f"{figures} holds figures of {measured.model}, on another list or not of {subject.model_id}")
    everything = reporting_mixtures.read(list_file)
    listed = [everything[number] for number in measured.numbers]
    sounds = Sounds(load(corpus, "valid", cache, progress_console.print))
    with count_bar("detecting", len(listed)) as advance:
        network = DetectorUnderTest(subject.model_id, bundle.detector, device)
        values = failures.properties(subject, network, listed, sounds, advance)
    found = [failures.thirds(name, values[name], measured) for name in PROPERTIES]
    for table in (losses_table(measured), properties_table(found)):
        console.print(table)
    if output:
        about = {"model": measured.model, "list": measured.digest}
        steps = dict(failures.losses(measured))
        json_report.write(about | {"losses": plain(steps), "properties": as_json(found)}, output)
    if plot:
        places = failures.worst(measured, SHOWN)
        draw(
            [_describe_mixture(subject, listed[at], sounds, measured, values, at) for at in places],
            plot,
            subject.model_id,
        )


def losses_table(figures: Figures) -> Table:
    """Return the table of `failures.losses`."""
    table = table_of("what is lost where, SI-SDR improvement", "step", "dB [95 %]")
    for name, estimate in failures.losses(figures):
        table.add_row(name, with_interval(estimate))
    return table


def properties_table(found: Sequence[Property]) -> Table:
    """Return the table of properties, three lines each, by falling correlation with the gain."""
    title = "improvement by thirds of rows, dB"
    table = table_of(
        title, "property (correlation of ranks)", "from, to", "n", "SI-SDR [95 %]", "wrong", "own", "ideal"
    )
    table.columns[0].width = 21
    for column in table.columns[1:]:
        column.no_wrap = True
    for one in sorted(found, key=lambda one: -abs(np.nan_to_num(one.correlation))):
        for at, part in enumerate(one.parts):
            table.add_row(
                (PROPERTIES[one.name], f"  {one.correlation:+.2f}", "")[at],
                f"{part.low:.2g}, {part.high:.2g}",
                str(part.gain.rows),
                with_interval(part.gain),
                percent(part.wrong),
                decibels(part.own),
                decibels(part.bound),
                end_section=at == len(one.parts) - 1,
            )
    return table


def as_json(found: Sequence[Property]) -> dict[str, Any]:
    """Return the properties for JSON."""
    return {
        one.name: {"correlation": one.correlation, "parts": [plain(vars(part)) for part in one.parts]} for one in found
    }


def _describe_mixture(
    subject: ModelUnderTest, row: MixtureRow, sounds: Sounds, figures: Figures, values: dict[str, np.ndarray], at: int
) -> Shown:
    mix, example = render(row, sounds), sounds.waveform(row.examples[0])
    query_batch = subject.query(example)[None]
    estimate = subject.estimates(torch.from_numpy(mix.mixture)[None], [query_batch])[0][0].numpy()
    against = sounds.clip(row.interference).label
    about = (
        f"{row.label}, against {against}: {figures.values[GAIN][at]:.0f} dB"
        f" (own segment {figures.values[failures.OWN][at]:.0f} dB; query like target {values['query_target'][at]:.2f},"
        f" like interference {values['query_interference'][at]:.2f}; overlap {values['overlap'][at]:.2f})"
    )
    waveforms = {"mixture": mix.mixture, "target": mix.target, "estimate": estimate, "query": example}
    return Shown(about, waveforms)


def draw(rows: Sequence[Shown], path: Path, title: str) -> None:
    """Draw a line of spectrograms for each mixture; mixture, target and estimate share a scale."""
    filters = mel_bands(1024, RATE, PICTURE_BANDS, 30.0, RATE / 2)
    figure = Figure(figsize=(11, 0.6 + 1.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: the mixtures with the lowest gain by one clip, one for each class", fontsize=11)
    for part, shown in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        part.suptitle(shown.about, fontsize=8, x=0.01, ha="left")
        top = -np.inf
        for axes, (name, waveform) in zip(part.subplots(1, len(shown.waveforms)), shown.waveforms.items(), strict=True):
            power = stft(torch.from_numpy(waveform)[None], 1024, PICTURE_HOP).abs().square()[0] @ filters
            level = 10 * torch.log10(power.clamp(min=1e-10)).numpy().T
            level = np.round(level / STEP_DB) * STEP_DB
            top = level.max() if name in ("mixture", "query") else top
            extent = (0, len(waveform) / RATE, 0, PICTURE_BANDS)
            axes.imshow(
                level,
                aspect="auto",
                origin="lower",
                extent=extent,
                vmin=top - RANGE_DB,
                vmax=top,
                cmap="Greys",
                interpolation="nearest",
            )
            axes.set_title(name, fontsize=7, pad=2)
            axes.set_yticks([])
            axes.tick_params(labelsize=6)
    save_small(figure, path, dpi=75)
