"""Summary of the rows' figures: means, medians and tenth percentiles with intervals; tables; JSON."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from models.evaluation.mixture_figures import MAIN_QUERIES, QUERIES, MixtureFigures
from models.evaluation.reports.bootstrap import Estimate, TwoLevel, by_class

QUERY_NAMES = {
    "own": "own segment",
    "example": "1 clip",
    "two_examples": "2 clips",
    "four_examples": "4 clips",
    "label": "label",
    "trained": "trained clip",
}
LOWEST_SHARE = 0.1
INTERVAL = "SI-SDR [95 %]"


class Summary:
    """Estimates of a model's figures; the bootstrap's `draws` share the rows' weights."""

    def __init__(self, measured: MixtureFigures, draws: int = 2000) -> None:
        self.measured = measured
        self._values = measured.values | _derive(measured.values)
        self._bootstrap = TwoLevel(measured.labels, measured.groups, draws)
        self.queries = [name for name in QUERIES if f"mixture/{name}/si_sdri" in self._values]
        self.means = {name: self._bootstrap.mean(values) for name, values in self._values.items()}
        gains = [f"mixture/{name}/si_sdri" for name in self.queries]
        self.medians = {name: self._bootstrap.quantile(self._values[name], 0.5) for name in gains}
        self.lowest = {name: self._bootstrap.quantile(self._values[name], LOWEST_SHARE) for name in gains}
        # On the rows that have both, since only some classes have many clips.
        self.over_one = {
            name: self._bootstrap.difference(self._values[f"mixture/{name}/si_sdri"], self._values[reference])
            for name in self.queries
            if name != "example" and (reference := "mixture/example/si_sdri") in self._values
        }
        self.classes = {name: self._by_class(name) for name in self.queries}
        halves = np.array([row.half for row in measured.rows])
        self.halves = {
            half: {
                name: self._bootstrap.mean(np.where(halves == half, self._values[f"mixture/{name}/si_sdri"], np.nan))
                for name in self.queries
            }
            for half in sorted(set(halves.tolist()))
        }

    def _by_class(self, query: str) -> dict[str, dict[str, Estimate]]:
        """Return each class's gain, with the interval over its groups, median, lowest tenth, confusion; best first."""
        found = {}
        for label, there, bootstrap in by_class(self.measured.labels, self.measured.groups):
            gains = self._values[f"mixture/{query}/si_sdri"][there]
            if np.isnan(gains).all():
                continue
            found[label] = {
                "si_sdri": bootstrap.mean(gains),
                "median": bootstrap.quantile(gains, 0.5),
                "lowest": bootstrap.quantile(gains, LOWEST_SHARE),
                "wrong": bootstrap.mean(self._values[f"mixture/{query}/wrong"][there]),
            }
        return dict(sorted(found.items(), key=lambda item: -item[1]["si_sdri"].value))

    # Tables, 80 columns wide

    def tables(self, title: str) -> list[Table]:
        """Return the tables to print."""
        return [self._gains(title), self._over_one(), self._scenes(), self._of_classes()]

    def _gains(self, title: str) -> Table:
        table = table_of(f"{title}: improvement, dB", "query", "n", "SDR", INTERVAL, "median", "10 %", "wrong", "right")
        wrong = percent(self.means["input/wrong"])
        table.add_row("(the mixture)", str(self.means["input/sdr"].rows), *["0.0"] * 4, wrong, "")
        for name in self.queries:
            gain = f"mixture/{name}/si_sdri"
            table.add_row(
                QUERY_NAMES[name],
                str(self.means[gain].rows),
                decibels(self.means[f"mixture/{name}/sdri"]),
                with_interval(self.means[gain]),
                decibels(self.medians[gain]),
                decibels(self.lowest[gain]),
                percent(self.means[f"mixture/{name}/wrong"]),
                decibels(self.means[f"mixture/{name}/right"]),
            )
        bound = self.means["oracle/si_sdri"]
        table.add_row(
            "(ideal mask)", str(bound.rows), decibels(self.means["oracle/sdri"]), with_interval(bound), *[""] * 4
        )
        return table

    def _over_one(self) -> Table:
        title = "improvement beyond that of 1 clip, on the rows that have both"
        table = table_of(title, "query", "n", INTERVAL)
        for name, difference in self.over_one.items():
            table.add_row(QUERY_NAMES[name], str(difference.rows), with_interval(difference))
        return table

    def _scenes(self) -> Table:
        names = [f"{QUERY_NAMES[name]} [95 %]" for name in MAIN_QUERIES]
        table = table_of("mixture, clean and silence, dB", "query A", "n", *names)
        rows = {
            "A+B: SDR": "mixture/{}/sdr",
            "A alone: SDR": "clean/{}/sdr",
            "B: in / out": "silence/{}/attenuation",
            "A+B+C: gain": "three/{}/si_sdri",
            "A+B, for C": "absent/{}/attenuation",
        }
        for title, figure in rows.items():
            of = [self.means.get(figure.format(name)) for name in MAIN_QUERIES]
            count = max((estimate.rows for estimate in of if estimate), default=0)
            table.add_row(title, str(count), *(with_interval(estimate) if estimate else "" for estimate in of))
        return table

    def _of_classes(self) -> Table:
        title = "improvement by class, dB"
        table = table_of(title, "class, by 1 clip", "n", INTERVAL, "median", "10 %", "wrong", "label")
        by_label = self.classes.get("label", {})
        for label, of in self.classes.get("example", {}).items():
            table.add_row(
                label if len(label) <= 24 else f"{label[:23].rstrip()}…",
                str(of["si_sdri"].rows),
                with_interval(of["si_sdri"]),
                decibels(of["median"]),
                decibels(of["lowest"]),
                percent(of["wrong"]),
                decibels(by_label[label]["si_sdri"]) if label in by_label else "",
            )
        return table

    # JSON

    def as_json(self) -> dict[str, Any]:
        """Return every estimate, and the rows' figures for `compare`."""
        return {
            "mixtures": len(self.measured.rows),
            "means": plain(self.means),
            "medians": plain(self.medians),
            "lowest_tenth": plain(self.lowest),
            "against_one_example": plain(self.over_one),
            "halves": plain(self.halves),
            "classes": plain({query: of for query, of in self.classes.items() if query in MAIN_QUERIES}),
            "rows": rows_as_json(
                self.measured.numbers, self.measured.labels, self.measured.groups, self.measured.values
            ),
        }


def rows_as_json(
    numbers: list[int], labels: list[str], groups: list[str], values: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return the rows as lists with two decimals, null for NaN, and groups as numbers."""
    place = {group: at for at, group in enumerate(sorted(set(groups)))}
    return {
        "number": numbers,
        "label": labels,
        "group": [place[group] for group in groups],
        "values": plain({name: array.tolist() for name, array in values.items()}, 2),
    }


def table_of(title: str, *columns: str) -> Table:
    """Return a table whose columns of intervals do not wrap."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.replace("[", "\\["), no_wrap="[" in column)
    return table


def decibels(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else f"{estimate.value:.1f}"


def percent(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.0f} %"


def with_interval(estimate: Estimate) -> str:
    """Format an estimate such as 5.8 [4.1, 7.3], without the interval if it is undefined."""
    if math.isnan(estimate.low):
        return decibels(estimate)
    return f"{estimate.value:.1f} \\[{estimate.low:.1f}, {estimate.high:.1f}]"


def _derive(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Derive levels from improvements, and the gain of rows where the right sound was estimated."""
    derived = {"oracle/sdr": values["oracle/sdri"] + values["input/sdr"]}
    for query in QUERIES:
        name = f"mixture/{query}/"
        if name + "si_sdri" in values:
            derived[name + "sdr"] = values[name + "sdri"] + values["input/sdr"]
            derived[name + "si_sdr"] = values[name + "si_sdri"] + values["input/si_sdr"]
            derived[name + "right"] = np.where(values[name + "wrong"] == 0, values[name + "si_sdri"], np.nan)
    return derived


def plain(figures: Any, digits: int = 3) -> Any:
    """Convert estimates, numbers, sequences and dictionaries of them for JSON: rounded, None for what is not finite."""
    if isinstance(figures, Estimate):
        return plain(asdict(figures), digits)
    if isinstance(figures, dict):
        return {name: plain(of, digits) for name, of in figures.items()}
    if isinstance(figures, list | tuple):
        return [plain(of, digits) for of in figures]
    if isinstance(figures, float):
        return round(figures, digits) if math.isfinite(figures) else None
    return figures
