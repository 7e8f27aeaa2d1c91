"""Report of the zero-shot evaluation of one model or two: tables, JSON, picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from models.checkpoints import Bundle
from models.evaluation.reports.bootstrap import Estimate, TwoLevel
from models.evaluation.reports.summaries import decibels, percent, plain, rows_as_json, table_of, with_interval
from models.experiments.zero_shot import OWN, SIDES, PairFigures, Result, classes_never_seen, drop_incomplete, summarise
from models.labels import ontology


class Report:
    """One model's figures, and optionally another's on the same rows."""

    def __init__(self, bundle: Bundle, measured: PairFigures) -> None:
        self.model, self.measured, self.result = bundle.model_id, measured, summarise(measured)
        self._held_out = sorted(classes_never_seen(bundle.config))
        self._from = "every stage" if bundle.config.get("held_out") else "the separator"
        self.other: str | None = None
        self.other_result: Result | None = None
        self.differences: dict[str, Estimate] = {}

    def put_beside(self, bundle: Bundle, measured: PairFigures) -> None:
        """Add another model's figures. Raises ValueError if they are of other rows."""
        if measured.rows != self.measured.rows:
            raise ValueError("the two models were measured on different mixtures: their rows do not pair")
        self.other, self.other_result = bundle.model_id, summarise(measured)
        bootstrap = TwoLevel(measured.labels, measured.groups)
        ours, theirs = drop_incomplete(self.measured.values), drop_incomplete(measured.values)
        self.differences = {name: bootstrap.difference(ours[name], theirs[name]) for name in ours}

    def tables(self) -> list[Table]:
        """Return the tables to print."""
        return [self._means(), self._classes()]

    def _means(self) -> Table:
        results = {self.model: self.result}
        if self.other and self.other_result:
            results[self.other] = self.other_result
        columns = [f"{model} [95 %]" for model in results] + (["difference [95 %]"] if self.other else [])
        table = table_of("unseen beside seen classes, same mixtures: SI-SDR gain, dB", "", "n", *columns)
        for asked_with, kind in (("another clip", ""), ("own segment", OWN)):
            for title, side in (("unseen", "unseen"), ("seen", "seen"), ("unseen - seen", "gap")):
                name = f"{side}{kind}/si_sdri"
                cells = [with_interval(result.means[name]) for result in results.values()]
                cells += [with_interval(self.differences[name])] if self.other else []
                table.add_row(f"{title}, by {asked_with}", str(self.result.means[name].rows), *cells)
            for side in SIDES:
                name = f"{side}{kind}/wrong"
                cells = [percent(result.means[name]) for result in results.values()] + ([""] if self.other else [])
                table.add_row(f"{side}, by {asked_with}: confused", str(self.result.means[name].rows), *cells)
        return table

    def _classes(self) -> Table:
        table = table_of(f"{self.model}, by class", "unseen class", "n", "unseen", "seen", "unseen - seen [95 %]")
        if self.other:
            table.add_column(f"unseen, {self.other}")
        for label, of in self.classes_by_gain():
            cells = [decibels(of["unseen/si_sdri"]), decibels(of["seen/si_sdri"]), with_interval(of["gap/si_sdri"])]
            if self.other_result:
                cells.append(decibels(self.other_result.classes[label]["unseen/si_sdri"]))
            table.add_row(label, str(of["gap/si_sdri"].rows), *cells)
        return table

    def classes_by_gain(self) -> list[tuple[str, dict[str, Estimate]]]:
        classes = {label: of for label, of in self.result.classes.items() if of["unseen/si_sdri"].rows}
        return sorted(classes.items(), key=lambda item: -item[1]["unseen/si_sdri"].value)

    def as_json(self) -> dict[str, Any]:
        """Return every estimate, and the rows' figures for `compare`."""
        measured = self.measured
        whole: dict[str, Any] = {
            "model": self.model,
            "held_out": [ontology()[mid].name for mid in self._held_out],
            "held_out_from": self._from,
            "mixtures": len(measured.rows),
            "means": plain(self.result.means),
            "classes": plain(self.result.classes),
            "rows": rows_as_json(list(range(len(measured.rows))), measured.labels, measured.groups, measured.values),
        }
        if self.other and self.other_result:
            beside = {"model": self.other, "means": self.other_result.means, "classes": self.other_result.classes}
            whole |= {"beside": plain(beside), "difference": plain(self.differences)}
        return whole


def draw_gaps(report: Report, path: Path) -> None:
    """Draw each unseen class's gain beside that of the seen sources in the same mixtures, and the distributions."""
    classes = report.classes_by_gain()
    figure = Figure(figsize=(12, max(4.0, 1.8 + 0.3 * len(classes))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    places = np.arange(len(classes))[::-1]
    unseen = [of["unseen/si_sdri"] for _, of in classes]
    seen = [of["seen/si_sdri"] for _, of in classes]
    for place, one, other in zip(places, unseen, seen, strict=True):
        left.plot([one.value, other.value], [place] * 2, color="lightgrey", linewidth=2, zorder=1)
        if not np.isnan(one.low):
            left.plot([one.low, one.high], [place + 0.18] * 2, color="tab:red", alpha=0.45, linewidth=3)
    left.plot([one.value for one in unseen], places, "o", color="tab:red", label="unseen")
    left.plot([one.value for one in seen], places, "s", color="tab:blue", label="seen, in the same mixtures")
    if report.other_result:
        others = [report.other_result.classes[label]["unseen/si_sdri"].value for label, _ in classes]
        left.plot(others, places, "|", color="black", markersize=10, label=f"the same, {report.other}")
    left.set_yticks(places, [f"{label[:34]} ({of['unseen/si_sdri'].rows})" for label, of in classes], fontsize=8)
    left.set_ylim(-0.7, len(classes) - 0.3)
    left.axvline(0, color="grey", linewidth=0.8)
    left.grid(axis="x", alpha=0.3)
    left.set_xlabel("SI-SDR improvement, dB")
    left.set_title(f"{report.model}: classes (bars: 95 % over source groups)")
    left.legend(fontsize=8)
    values = drop_incomplete(report.measured.values)
    for name, colour, label in (
        ("unseen/si_sdri", "tab:red", "unseen"),
        ("seen/si_sdri", "tab:blue", "seen"),
    ):
        gains = np.sort(values[name][~np.isnan(values[name])])
        right.plot(gains, np.arange(1, len(gains) + 1) / len(gains), color=colour, label=label)
    gap = report.result.means["gap/si_sdri"]
    right.set_title(f"unseen - seen: {gap.value:.1f} dB [{gap.low:.1f}, {gap.high:.1f}]")
    right.set_xlabel("SI-SDR improvement, dB")
    right.set_ylabel("share of mixtures up to there")
    right.axvline(0, color="grey", linewidth=0.8)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=100)
