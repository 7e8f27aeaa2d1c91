"""Pictures of a summary's gains."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.evaluation.mixture_figures import MAIN_QUERIES, MixtureFigures
from models.evaluation.reports.bootstrap import Estimate
from models.evaluation.reports.summaries import QUERY_NAMES, Summary
from models.plots import save_small

COLOURS = {
    "own": "tab:green",
    "example": "tab:blue",
    "two_examples": "tab:cyan",
    "four_examples": "tab:purple",
    "label": "tab:orange",
    "trained": "tab:brown",
}


def draw_gains(summary: Summary, path: Path, title: str) -> None:
    """Draw the gain of each class with its interval over groups, and the distribution of all rows' gains."""
    classes = summary.classes.get("example", {})
    figure = Figure(figsize=(13, max(5.0, 2.0 + 0.21 * len(classes))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    draw_classes(left, {label: of["si_sdri"] for label, of in classes.items()}, COLOURS["example"], "1 clip")
    by_label = summary.classes.get("label", {})
    places = [len(classes) - 1 - at for at, label in enumerate(classes) if label in by_label]
    gains = [by_label[label]["si_sdri"].value for label in classes if label in by_label]
    if gains:
        left.plot(gains, places, "|", color=COLOURS["label"], markersize=9, markeredgewidth=2, label="label")
    if "mixture/example/si_sdri" in summary.means:
        left.axvline(summary.means["mixture/example/si_sdri"].value, color=COLOURS["example"], alpha=0.4, linestyle=":")
    left.set_title(f"{title}: classes (bars: 95 % over source groups)")
    left.legend(loc="lower right")
    draw_distributions(right, summary.measured, summary.queries)
    save_small(figure, path, dpi=100)


def draw_classes(axes: Axes, gains: dict[str, Estimate], colour: str, name: str) -> None:
    """Draw each class's mean and interval, best on top."""
    places = np.arange(len(gains))[::-1]
    for place, gain in zip(places, gains.values(), strict=True):
        if not np.isnan(gain.low):
            axes.plot([gain.low, gain.high], [place] * 2, color=colour, alpha=0.45, linewidth=3)
    axes.plot([gain.value for gain in gains.values()], places, "o", color=colour, markersize=5, label=name)
    axes.set_yticks(places, [f"{label[:34]} ({gain.rows})" for label, gain in gains.items()], fontsize=8)
    axes.set_ylim(-0.7, len(gains) - 0.3)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("SI-SDR improvement, dB")


def draw_distributions(axes: Axes, measured: MixtureFigures, queries: list[str]) -> None:
    """Draw the cumulative distribution of gains for each kind of query."""
    for name in queries:
        gains = measured.values[f"mixture/{name}/si_sdri"]
        gains = np.sort(gains[~np.isnan(gains)])
        label = f"{QUERY_NAMES[name]} ({len(gains)})"
        style = "-" if name in MAIN_QUERIES else "--"
        axes.plot(gains, np.arange(1, len(gains) + 1) / len(gains), style, color=COLOURS[name], label=label)
    bound = np.sort(measured.values["oracle/si_sdri"])
    axes.plot(bound, np.arange(1, len(bound) + 1) / len(bound), ":", color="black", label="the ideal mask")
    axes.set_xlim(-25, 45)
    axes.set_ylim(0, 1)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.set_xlabel("SI-SDR improvement, dB")
    axes.set_ylabel("share of mixtures up to there")
    axes.set_title("distribution over mixtures, by query")
    axes.legend(loc="upper left", fontsize=8)
