"""The table of ablations: each run's figures, and their changes to the baseline on the same mixtures."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from models.evaluation.reports import comparison
from models.evaluation.reports.bootstrap import Estimate
from models.evaluation.reports.summaries import decibels, percent, table_of, with_interval
from models.runs import run_folder
from models.runs.run_folder import LOG

BASELINE = "baseline"
# By column: the figure in the rows of `evaluate mixtures`, and in those of `evaluate zero-shot`.
FIGURES = {
    "example": ("mixture/example/si_sdri", "unseen/si_sdri"),
    "example_sdr": ("mixture/example/sdri", "unseen/sdri"),
    "label": ("mixture/label/si_sdri", None),
    "own": ("mixture/own/si_sdri", "unseen_own/si_sdri"),
    "absent": ("absent/example/attenuation", None),
    "wrong": ("mixture/example/wrong", "unseen/wrong"),
}
Columns = dict[str, Estimate]
NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Row:
    """A line of the table. Changes are to the baseline, on the same mixtures; NaN where there is no such query."""

    name: str
    asks: str
    command: str
    mixtures: str
    steps: int
    audio_hours: float
    minutes: float
    values: dict[str, Estimate]
    changes: dict[str, Estimate]


def row_of(name: str, asks: str, command: str, folder: Path) -> Row:
    """Return the row of a finished run in the folder."""
    run = folder / name
    with (run / LOG).open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    values, changes, mixtures = (
        compare_on_other_classes(run) if hides(run) else compare_to_baseline(run, folder / BASELINE)
    )
    spent = int(last["step"]), float(last["audio_hours"]), float(last["minutes"])
    return Row(name, asks, command, mixtures, *spent, values, changes)


def figures_of(run: Path) -> Path:
    """Return the path of a run's figures."""
    return run / "figures.json"


def hides(run: Path) -> bool:
    """Return whether a run's separator was trained without some classes."""
    return bool(run_folder.read_setup(run)["place"]["separator_held_out"])


def compare_to_baseline(run: Path, baseline: Path) -> tuple[Columns, Columns, str]:
    """Return the run's values and their changes to the baseline's, on the listed mixtures."""
    before, after = comparison.read(figures_of(baseline)), comparison.read(figures_of(run))
    compared = {one.figure: one for one in comparison.compare(before, after)}
    there = {column: compared[figure] for column, (figure, _) in FIGURES.items() if figure in compared}
    values = {column: one.second for column, one in there.items()}
    changes = {column: one.difference for column, one in there.items()} if run != baseline else {}
    return values, changes, f"{len(after.numbers)} of the list"


def compare_on_other_classes(run: Path) -> tuple[Columns, Columns, str]:
    """Return the run's values and their changes to the baseline's, on classes that its separator was not trained on."""
    whole = json.loads(figures_of(run).read_text(encoding="utf-8"))
    names = {column: figure for column, (_, figure) in FIGURES.items() if figure}
    values, changes = (
        {column: estimate(whole[kind][figure]) for column, figure in names.items()} for kind in ("means", "difference")
    )
    return values, changes, f"{whole['mixtures']} of {len(set(whole['rows']['label']))} classes never heard"


def estimate(said: dict[str, Any]) -> Estimate:
    """Return an estimate read from JSON."""
    value, low, high = (math.nan if said[name] is None else said[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, said["rows"])


def tables(table: list[Row]) -> list[Table]:
    """Return the tables to print: values, then changes to the baseline."""
    titles = {"example": "1 clip", "label": "label", "own": "own segment", "absent": "absent, down", "wrong": "wrong"}
    values = table_of("small separators: SI-SDR improvement, dB", "", "steps", "hours", *titles.values())
    changes = table_of("beyond the baseline, paired, 95 %; wrong in points", "", *titles.values())
    for row in table:
        cells = [(percent if column == "wrong" else decibels)(row.values.get(column, NOTHING)) for column in titles]
        values.add_row(row.name, str(row.steps), f"{row.audio_hours:.1f}", *cells)
        if row.changes:
            cells = []
            for column in titles:
                change, scale = row.changes.get(column, NOTHING), 100 if column == "wrong" else 1
                bounds = (change.value * scale, change.low * scale, change.high * scale)
                cells.append(with_interval(Estimate(*bounds, change.rows)).replace(" \\[", "\n\\["))
            changes.add_row(row.name, *cells)
    return [values, changes]


def write(table: list[Row], path: Path) -> None:
    """Write the table as CSV: each figure, its change to the baseline with the interval, and the command."""
    kinds = ("", "_change", "_low", "_high")
    names = ["name", "asks", "mixtures", "steps", "audio_hours", "minutes"]
    names += [column + kind for column in FIGURES for kind in kinds] + ["command"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in table:
            cells: list[Any] = [row.name, row.asks, row.mixtures]
            cells += [row.steps, row.audio_hours, row.minutes]
            for column in FIGURES:
                value, change = row.values.get(column, NOTHING), row.changes.get(column, NOTHING)
                numbers = (value.value, change.value, change.low, change.high)
                cells += ["" if math.isnan(number) else round(number, 3) for number in numbers]
            writer.writerow([*cells, row.command])
