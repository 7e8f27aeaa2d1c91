"""`evaluate practical`: what people ask for most, by name, by one clip, by a second of the recording itself, and by the
sound itself."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from rich.table import Table

from models.commands import Device, QualityOption
from models.console import console, progress_console
from models.corpus.clips import RATE, Clips
from models.corpus.decoded import load
from models.corpus.rendering.scores import midi_files
from models.corpus.reserved import reserved_groups
from models.evaluation import midi_scores, practical_mixtures, reporting_mixtures
from models.evaluation.arguments import Bank, Cache, DrawnRows, Output, WeightsOrRun
from models.evaluation.band_mixtures import Bands
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.practical_mixtures import PracticalRow, PracticalSounds
from models.evaluation.reports.bootstrap import Estimate, TwoLevel
from models.evaluation.reports.json_report import write_rows
from models.evaluation.reports.summaries import decibels, percent, plain, rows_as_json, table_of, with_interval
from models.labels import find
from models.options import DEFAULT_OPTIONS
from models.queries.query import Query
from models.validation.metrics import improvements, sdr, si_sdr
from models.validation.rendering import FRAME, Mix, Sounds, stack

QUERIES = {"own": "own segment", "example": "1 clip", "label": "label", "span": "span of it"}
SPAN = RATE  # samples of the recording that a user points at

Corpus = Annotated[Path, typer.Option(help="Folder with the corpus, whose valid split and reserved clips are used.")]
Scores = Annotated[
    list[Path] | None, typer.Option("--scores", help="Folder of MIDI files, again for each. Default: as unpacked.")
]
Rows = Annotated[
    Path, typer.Option("--list", help="Rows made by draw-practical.", dir_okay=False, show_default="the committed list")
]


@dataclass(frozen=True)
class PracticalFigures:
    """`values`: figures by "practical/query/figure", each (rows,), NaN where a row has none."""

    rows: list[PracticalRow]
    groups: list[str]  # the targets' source groups
    values: dict[str, np.ndarray]


def measure(subject: ModelUnderTest, rows: Iterable[PracticalRow], sounds: PracticalSounds) -> PracticalFigures:
    """Return the figures of every row."""
    measured, values = [], defaultdict(list)
    for row in rows:
        for name, value in _figures(subject, row, sounds.render(row), sounds).items():
            values[name].append(value.item())
        measured.append(row)
    groups = [sounds.group(row.target) for row in measured]
    return PracticalFigures(measured, groups, {name: np.array(of) for name, of in values.items()})


def clearest_span(mix: Mix) -> slice:
    """Return the SPAN samples in which the target is clearest, as its power over the interference's."""
    frames = len(mix.target) // FRAME
    power = [
        np.square(sound[: frames * FRAME], dtype=np.float64).reshape(frames, FRAME).sum(1)
        for sound in (mix.target, mix.interference)
    ]
    windows = [np.convolve(of, np.ones(SPAN // FRAME), "valid") for of in power]
    # Where the target is hardly there, a ratio says nothing.
    heard = windows[0] > 0.1 * windows[0].max()
    start = int(np.where(heard, windows[0] / (windows[1] + 1e-9), 0.0).argmax()) * FRAME
    return slice(start, start + SPAN)


def _figures(subject: ModelUnderTest, row: PracticalRow, mix: Mix, sounds: PracticalSounds) -> dict[str, torch.Tensor]:
    mixture, target, rest = stack([mix])
    missing = torch.full((subject.query_size,), float("nan"))
    queries = {
        "own": subject.embed(mix.target),
        "example": subject.query(sounds.example(row)),
        "label": subject.bundle.class_embeddings.get(find(row.label).mid, missing).float(),
        "span": _of_span(subject, mix),
    }
    bound, before = subject.oracle(mixture, target), si_sdr(mixture, target)
    found = {
        "input/si_sdr": before,
        "input/sdr": sdr(mixture, target),
        "oracle/si_sdri": si_sdr(bound, target) - before,
    }
    for name, estimate in zip(
        queries, subject.estimates(mixture, [query[None] for query in queries.values()]), strict=True
    ):
        gained = improvements(estimate, mixture, target, rest)
        found |= {f"practical/{name}/{figure}": of for figure, of in gained.items()}
    return found


def _of_span(subject: ModelUnderTest, mix: Mix) -> torch.Tensor:
    """Return the query (D,) of the clearest span, apart from its surroundings as in the engine."""
    span = clearest_span(mix)
    around = np.concatenate([mix.mixture[: span.start], mix.mixture[span.stop :]])
    own, rest = (Query(subject.embed(part), subject.model_id) for part in (mix.mixture[span], around))
    return own.apart_from(rest).vector if rest.vector.isfinite().all() else own.vector


class Report:
    """Means of each scene, with intervals over the targets' source groups."""

    def __init__(self, measured: PracticalFigures, draws: int = 1000) -> None:
        self.measured = measured
        rows, values = measured.rows, measured.values
        self.cells: dict[str, dict[str, Estimate]] = {}
        self.counts: dict[str, tuple[int, int, int]] = {}  # rows, groups, rows with a clip that older models heard
        for name, chosen in self._cells().items():
            places = np.flatnonzero([chosen(row) for row in rows])
            if not len(places):
                continue
            groups = [measured.groups[at] for at in places]
            bootstrap = TwoLevel([""] * len(places), groups, draws)
            self.cells[name] = {figure: bootstrap.mean(of[places]) for figure, of in values.items()}
            self.counts[name] = len(places), len(set(groups)), sum(bool(rows[at].heard) for at in places)

    def _cells(self) -> dict[str, Any]:
        scenes = dict.fromkeys((row.scene, row.level) for row in self.measured.rows)
        cells: dict[str, Any] = {
            f"{scene}, {level:.0f} dB" if "band" not in scene else scene: (
                lambda row, scene=scene, level=level: (row.scene, row.level) == (scene, level)
            )
            for scene, level in scenes
        }
        for half in reporting_mixtures.HALVES:
            cells[f"Speech at 0 dB, {half}"] = lambda row, half=half: (
                row.half == half and row.scene.startswith("Speech") and row.level == 0
            )
            cells[f"Singing, {half}"] = lambda row, half=half: row.half == half and row.label == "Singing"
            cells[f"drums, {half}"] = lambda row, half=half: row.half == half and row.scene.startswith("drums")
            cells[f"instruments in bands, {half}"] = lambda row, half=half: (
                row.half == half and row.target.startswith("part ")
            )
            cells[f"all others, {half}"] = lambda row, half=half: (
                row.half == half and row.label not in ("Speech", "Singing") and not row.target.startswith("part ")
            )
        return cells

    def table(self, title: str) -> Table:
        """Return the table to print: SI-SDR improvement in dB."""
        table = table_of(
            title, "scene", "n", "groups", *(f"{name} [95 %]" for name in QUERIES.values()), "wrong", "ideal"
        )
        for name, of in self.cells.items():
            count, groups, heard = self.counts[name]
            table.add_row(
                name,
                f"{count}{'*' if heard else ''}",
                str(groups),
                *(with_interval(of[f"practical/{query}/si_sdri"]) for query in QUERIES),
                percent(of["practical/example/wrong"]),
                decibels(of["oracle/si_sdri"]),
            )
        table.caption = "* some rows with a clip that base@1 to base@3 were trained on"
        return table

    def as_json(self) -> dict[str, Any]:
        """Return every estimate, and the rows' figures for `compare`."""
        rows = self.measured.rows
        return {
            "cells": {
                name: {"rows": count, "groups": groups, "heard": heard} | plain(self.cells[name])
                for name, (count, groups, heard) in self.counts.items()
            },
            "rows": rows_as_json(
                list(range(len(rows))), [row.scene for row in rows], self.measured.groups, self.measured.values
            ),
        }


def evaluate_practical(
    corpus: Corpus,
    weights: WeightsOrRun = "base",
    folders: Scores = None,
    bank: Bank = midi_scores.BANK,
    rows: Annotated[int | None, typer.Option(help="Number of rows, taken evenly from the list.", min=1)] = None,
    list_file: Rows = practical_mixtures.PRACTICAL,
    quality: QualityOption = DEFAULT_OPTIONS.quality,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
) -> None:
    """Evaluate on what people ask for most: speech in weather and crowds, singing, instruments, animals, sirens."""
    listed = practical_mixtures.read_rows(list_file)
    listed = listed[:: max(1, len(listed) // rows)][:rows] if rows else listed
    sounds, _, _ = _sounds(corpus, cache, folders, bank)
    subject = ModelUnderTest(load_bundle(weights), device, quality)
    shown = track(listed, "practical", console=progress_console, transient=True)
    report = Report(measure(subject, shown, sounds))
    console.print(report.table(f"{subject.model_id}, {len(listed)} practical mixtures: SI-SDR improvement, dB"))
    if output:
        about = {"model": subject.model_id, "list": reporting_mixtures.digest(list_file)}
        about |= {"quality": quality} if quality != DEFAULT_OPTIONS.quality else {}
        write_rows(about | report.as_json(), output)


def draw_practical(
    corpus: Corpus,
    folders: Scores = None,
    bank: Bank = midi_scores.BANK,
    output: DrawnRows = practical_mixtures.PRACTICAL,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = practical_mixtures.SEED,
    cache: Cache = Path(".cache"),
) -> None:
    """Draw the practical list; the same corpus, scores, bank and seed draw the same rows."""
    sounds, bands, (valid, reserved) = _sounds(corpus, cache, folders, bank)
    drawn = practical_mixtures.draw(valid.clips, reserved.clips, sounds, bands, seed)
    practical_mixtures.write_rows(drawn, output)
    console.print(f"{output}: {len(drawn)} mixtures, {len({row.scene for row in drawn})} scenes")


def _sounds(
    corpus: Path, cache: Path, folders: Sequence[Path] | None, bank: Path
) -> tuple[PracticalSounds, Bands, tuple[Clips, Clips]]:
    """Return the sounds and the bands, and the clips of the valid split and the reserved ones."""
    valid, train = (load(corpus, split, cache, progress_console.print) for split in ("valid", "train"))
    reserved = Clips(train.samples, [clip for clip in train.clips if clip.group in reserved_groups()])
    where = tuple(folders) if folders else practical_mixtures.SCORES
    if not any(midi_files(where)):
        names = ", ".join(str(folder) for folder in where)
        raise FileNotFoundError(f"no MIDI files in {names}; make evaluate unpacks them from Debian's packages")
    bands = Bands(where, midi_scores.synthesizer(bank), progress_console.print)
    return PracticalSounds(Sounds(valid, reserved), bands), bands, (valid, reserved)
