"""Paired comparison of two models on the same rows, from the JSON files of the evaluations."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from models.evaluation.reports.bootstrap import Estimate, TwoLevel
from models.evaluation.reports.summaries import decibels, plain, table_of, with_interval


@dataclass(frozen=True)
class Figures:
    """The rows of a JSON file: `values` by figure, (rows,), NaN where there are none."""

    model: str
    digest: str
    numbers: list[int]
    labels: list[str]
    groups: list[int]
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """One figure of both models on the rows that both have; difference is second - first."""

    figure: str
    first: Estimate
    second: Estimate
    difference: Estimate
    better: float  # share of rows where the second is higher


def read(path: Path) -> Figures:
    """Read figures of `evaluate mixtures` or `evaluate zero-shot`. Raises ValueError for another file."""
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = whole["rows"]
        values = {name: np.array(of, dtype=float) for name, of in rows["values"].items()}
        found = Figures(whole["model"], whole["list"], rows["number"], rows["label"], rows["group"], values)
        if any(len(of) != len(found.numbers) for of in (*values.values(), found.labels, found.groups)):
            raise ValueError("its columns differ in length")
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        reason = f"{fault} is missing" if isinstance(fault, KeyError) else fault
        raise ValueError(f"{path}: not figures of mixtures with their rows: {reason}") from fault
    return found


def compare(first: Figures, second: Figures) -> list[Compared]:
    """Compare every figure that both have. Raises ValueError unless both are of the same list and share rows."""
    if first.digest != second.digest:
        raise ValueError("the two were measured on different lists of mixtures: their rows do not pair")
    shared = sorted(set(first.numbers) & set(second.numbers))
    if not shared:
        raise ValueError("the two have no mixture in common: they were measured on different halves")
    places = [{number: at for at, number in enumerate(one.numbers)} for one in (first, second)]
    ours, theirs = ([of[number] for number in shared] for of in places)
    bootstrap = TwoLevel([first.labels[at] for at in ours], [str(first.groups[at]) for at in ours])
    compared = []
    for figure in first.values:
        if figure not in second.values or figure.startswith(("input/", "oracle/")):
            continue
        before, after = first.values[figure][ours], second.values[figure][theirs]
        both = np.isnan(before) | np.isnan(after)
        before, after = np.where(both, np.nan, before), np.where(both, np.nan, after)
        if both.all():
            continue
        compared.append(
            Compared(
                figure,
                bootstrap.mean(before),
                bootstrap.mean(after),
                bootstrap.difference(after, before),
                float((after > before)[~both].mean()),
            )
        )
    return compared


def table(first: Figures, second: Figures, compared: list[Compared]) -> Table:
    """Return the table to print."""
    columns = ("figure", "n", first.model, second.model, "difference [95 %]", "higher")
    shown = table_of("second - first, paired", *columns)
    # Fold the models' names rather than the figures', which differ at the end only.
    shown.columns[0].min_width = max((len(one.figure) + 3 for one in compared), default=0)
    for column in shown.columns[2:4]:
        column.max_width, column.overflow = 9, "fold"
    for one in compared:
        share = one.figure.endswith("/wrong")
        scale = 100 if share else 1
        first_mean, second_mean, difference = (
            Estimate(scale * of.value, scale * of.low, scale * of.high, of.rows)
            for of in (one.first, one.second, one.difference)
        )
        shown.add_row(
            one.figure + (", %" if share else ""),
            str(one.first.rows),
            decibels(first_mean),
            decibels(second_mean),
            with_interval(difference),
            f"{100 * one.better:.0f} %",
        )
    return shown


def as_json(first: Figures, second: Figures, compared: list[Compared]) -> dict[str, Any]:
    """Return the table for JSON, with NaN as null."""
    whole = {one.figure: {key: value for key, value in asdict(one).items() if key != "figure"} for one in compared}
    return {"first": first.model, "second": second.model, "figures": plain(whole)}
