"""`evaluate bands`: separate one instrument from a band that plays a score.

Scores and sound bank come from Debian packages that no training corpus uses. The queries of each instrument are its own
segment, a clip of its class from the corpus's validation split, and its class's label.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from rich.table import Table
from torch import Tensor

from models.commands import Device
from models.console import console, progress_console
from models.corpus.decoded import load
from models.corpus.rendering.scores import midi_files
from models.evaluation import band_mixtures, midi_scores, reporting_mixtures
from models.evaluation.arguments import Bank, Cache, DrawnRows, Output, Scores, WeightsOrRun
from models.evaluation.band_mixtures import Bands, Row
from models.evaluation.mixture_figures import MAIN_QUERIES
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.reports.bootstrap import Estimate, TwoLevel, by_class
from models.evaluation.reports.json_report import write_rows
from models.evaluation.reports.summaries import (
    QUERY_NAMES,
    decibels,
    percent,
    plain,
    rows_as_json,
    table_of,
    with_interval,
)
from models.labels import find
from models.validation.metrics import improvements, sdr, si_sdr
from models.validation.rendering import Mix, Sounds, stack, usable

Corpus = Annotated[Path, typer.Option(help="Folder with the corpus, whose valid split has the queries.")]
Rows = Annotated[
    Path, typer.Option("--list", help="Rows made by draw-bands.", dir_okay=False, show_default="the committed list")
]


@dataclass(frozen=True)
class BandFigures:
    """`values`: figures by "band/query/figure", each (rows,), NaN where a row has none."""

    rows: list[Row]
    values: dict[str, np.ndarray]


def measure(subject: ModelUnderTest, rows: Iterable[Row], bands: Bands, sounds: Sounds) -> BandFigures:
    """Return the figures of every row."""
    measured, values = [], defaultdict(list)
    for row in rows:
        for name, value in _figures(subject, row, bands.render(row), sounds).items():
            values[name].append(value.item())
        measured.append(row)
    return BandFigures(measured, {name: np.array(of) for name, of in values.items()})


def _figures(subject: ModelUnderTest, row: Row, mix: Mix, sounds: Sounds) -> dict[str, Tensor]:
    mixture, target, rest = stack([mix])
    missing = torch.full((subject.query_size,), float("nan"))
    label = subject.bundle.class_embeddings.get(find(row.label).mid, missing).float()
    queries = (subject.embed(mix.target), subject.query(sounds.waveform(row.query)), label)
    bound, before = subject.oracle(mixture, target), si_sdr(mixture, target)
    found = {
        "input/si_sdr": before,
        "input/sdr": sdr(mixture, target),
        "input/wrong": (si_sdr(mixture, rest) > before).float(),
        "oracle/si_sdri": si_sdr(bound, target) - before,
        "oracle/sdri": sdr(bound, target) - sdr(mixture, target),
    }
    estimates = subject.estimates(mixture, [query[None] for query in queries])
    for name, estimate in zip(MAIN_QUERIES, estimates, strict=True):
        gained = improvements(estimate, mixture, target, rest)
        found |= {f"band/{name}/{figure}": of for figure, of in gained.items()}
    return found


class Report:
    """Means with intervals over scores, then excerpts, since excerpts of one score are similar."""

    def __init__(self, measured: BandFigures, draws: int = 2000) -> None:
        self.measured = measured
        rows, values = measured.rows, measured.values
        bootstrap = TwoLevel([row.score for row in rows], [f"{row.start}" for row in rows], draws)
        self.queries = [name for name in MAIN_QUERIES if not np.isnan(values[f"band/{name}/si_sdri"]).all()]
        self.means = {name: bootstrap.mean(of) for name, of in values.items() if not np.isnan(of).all()}
        self.medians = {name: bootstrap.quantile(values[f"band/{name}/si_sdri"], 0.5) for name in self.queries}
        self.classes: dict[str, dict[str, Estimate]] = {
            label: {name: of_class.mean(of[there]) for name, of in values.items() if name in self.means}
            for label, there, of_class in by_class([row.label for row in rows], [row.score for row in rows])
        }

    def tables(self, title: str) -> list[Table]:
        """Return the tables to print."""
        return [self._gains(title), self._of_classes()]

    def _gains(self, title: str) -> Table:
        table = table_of(title, "query", "n", "SDR", "SI-SDR [95 %]", "median", "wrong")
        before = self.means["input/si_sdr"]
        table.add_row("(the band)", str(before.rows), "0.0", "0.0", "0.0", percent(self.means["input/wrong"]))
        for name in self.queries:
            gain = self.means[f"band/{name}/si_sdri"]
            table.add_row(
                QUERY_NAMES[name],
                str(gain.rows),
                decibels(self.means[f"band/{name}/sdri"]),
                with_interval(gain),
                decibels(self.medians[name]),
                percent(self.means[f"band/{name}/wrong"]),
            )
        bound = self.means["oracle/si_sdri"]
        table.add_row("(ideal mask)", str(bound.rows), decibels(self.means["oracle/sdri"]), with_interval(bound))
        return table

    def _of_classes(self) -> Table:
        names = [QUERY_NAMES[name] for name in self.queries]
        table = table_of("SI-SDR improvement by instrument, dB", "instrument", "n", "in the band", *names, "ideal")
        first = f"band/{self.queries[0]}/si_sdri"
        for label, of in sorted(self.classes.items(), key=lambda item: -item[1][first].value):
            gains = [decibels(of[f"band/{name}/si_sdri"]) for name in self.queries]
            level, bound = decibels(of["input/si_sdr"]), decibels(of["oracle/si_sdri"])
            table.add_row(label, str(of["input/si_sdr"].rows), level, *gains, bound)
        return table

    def as_json(self) -> dict[str, Any]:
        """Return every estimate, and the rows' figures for `compare`."""
        rows = self.measured.rows
        return {
            "means": plain(self.means),
            "medians": plain(self.medians),
            "classes": plain(self.classes),
            "rows": rows_as_json(
                list(range(len(rows))),
                [row.label for row in rows],
                [row.score for row in rows],
                self.measured.values,
            ),
        }


def evaluate_bands(
    corpus: Corpus,
    weights: WeightsOrRun = "base",
    folders: Scores = None,
    bank: Bank = midi_scores.BANK,
    rows: Annotated[int | None, typer.Option(help="Number of rows, taken evenly from the list.", min=1)] = None,
    list_file: Rows = band_mixtures.BANDS,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
) -> None:
    """Evaluate on instruments of bands that play scores: one instrument against the rest, at the score's levels."""
    bands = _bands(folders, bank)
    listed = band_mixtures.read_rows(list_file)
    listed = listed[:: max(1, len(listed) // rows)][:rows] if rows else listed
    subject = ModelUnderTest(load_bundle(weights), device)
    sounds = Sounds(load(corpus, "valid", cache, progress_console.print))
    shown = track(listed, "bands", console=progress_console, transient=True)
    report = Report(measure(subject, shown, bands, sounds))
    for table in report.tables(f"{subject.model_id}, {len(listed)} instruments of bands: improvement, dB"):
        console.print(table)
    if output:
        about = {"model": subject.model_id, "list": reporting_mixtures.digest(list_file), "bank": bank.name}
        write_rows(about | report.as_json(), output)


def draw_bands(
    corpus: Corpus,
    folders: Scores = None,
    bank: Bank = midi_scores.BANK,
    output: DrawnRows = band_mixtures.BANDS,
    rows: Annotated[int, typer.Option(help="How many.", min=1)] = band_mixtures.ROWS,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = band_mixtures.SEED,
    cache: Cache = Path(".cache"),
) -> None:
    """Draw the list of instruments in bands; the same scores, bank, corpus and seed draw the same rows."""
    bands = _bands(folders, bank)
    queries = usable(load(corpus, "valid", cache, progress_console.print))
    drawn = band_mixtures.draw(bands, queries, rows, seed)
    band_mixtures.write_rows(drawn, output)
    console.print(f"{output}: {len(drawn)} instruments in bands, {len({row.score for row in drawn})} scores")


def _bands(folders: list[Path] | None, bank: Path) -> Bands:
    where = tuple(folders) if folders else midi_scores.FOLDERS
    synthesizer = midi_scores.synthesizer(bank)
    if not any(midi_files(where)):
        names = ", ".join(str(folder) for folder in where)
        raise FileNotFoundError(f"no MIDI files in {names}; on Debian: apt-get install {midi_scores.PACKAGES}")
    return Bands(where, synthesizer, progress_console.print)
