"""Analysis of failures: how a model's gain depends on properties of the listed mixtures.

Each property of a mixture is a number; `thirds` returns the gain in its lowest, middle and highest third.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from models.corpus.clips import RATE
from models.corpus.relations import are_related
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reporting_mixtures import MixtureRow, render
from models.evaluation.reports.bootstrap import Estimate, TwoLevel
from models.evaluation.reports.comparison import Figures
from models.labels import classes, find
from models.spectrum import mel_bands, stft
from models.validation.rendering import Sounds, sounding

BANDS = 64  # of the spectra whose overlap is measured, on the mel scale
# Levels in dB, similarities as cosines of embeddings, overlap as the share of energy in the same bands.
PROPERTIES = {
    "level": "target recorded louder",
    "overlap": "overlap of spectra",
    "sounds": "target sounds for, s",
    "example": "length of example, s",
    "query_target": "query like target",
    "query_interference": "query like interference",
    "target_interference": "target like interference",
    "margin": "query nearer to target",
    "ear_right": "detector finds query's class",
}
GAIN, WRONG, OWN, BOUND = (
    "mixture/example/si_sdri",
    "mixture/example/wrong",
    "mixture/own/si_sdri",
    "oracle/si_sdri",
)


@dataclass(frozen=True)
class Third:
    """Rows whose property is between `low` and `high`: gains with one clip and with the target's own segment as query,
    share of wrong ones, and gain of the ideal mask."""

    low: float
    high: float
    gain: Estimate
    wrong: Estimate
    own: Estimate
    bound: Estimate


@dataclass(frozen=True)
class Property:
    """A property's thirds, and its rank correlation with the gain for one clip as query."""

    name: str
    correlation: float
    parts: list[Third]


def properties(
    subject: ModelUnderTest,
    network: DetectorUnderTest,
    listed: list[MixtureRow],
    sounds: Sounds,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Each of PROPERTIES of each row (rows,), NaN where a row has none; advance is called after each row."""
    filters = mel_bands(1024, RATE, BANDS, 30.0, RATE / 2, normalised=False)
    labels = {find(row.label).mid for row in listed} & network.class_mids
    columns = [column for column, label in enumerate(classes()) if label.mid in labels]
    among = [classes()[column].mid for column in columns]
    cached: dict[str, tuple[Tensor, float]] = {}
    found: dict[str, list[float]] = {name: [] for name in PROPERTIES}

    def query(key: str, label: str) -> tuple[Tensor, float]:
        if key not in cached:
            clip = sounds.waveform(key)
            named = among[int(network.clipwise(clip, RATE)[columns].argmax())]
            cached[key] = subject.query(clip), float(are_related(named, find(label).mid))
        return cached[key]

    for row in listed:
        samples = row.seconds * RATE
        mix = render(row, sounds)
        over = sounding(mix.target)
        recorded = [
            float(np.square(sounds.segment(key, start, samples)[over], dtype=np.float64).sum())
            for key, start in ((row.target, row.target_start), (row.interference, row.interference_start))
        ]
        spectra = [spectrum_shares(torch.from_numpy(part), filters) for part in (mix.target, mix.interference)]
        example_query, right = query(row.examples[0], row.label)
        target, other = subject.embed(mix.target), subject.embed(mix.interference)
        values = {
            "level": 10 * np.log10(recorded[0] / recorded[1]),
            "overlap": torch.minimum(*spectra).sum().item(),
            "sounds": over.mean() * row.seconds,
            "example": sounds.clip(row.examples[0]).frames / RATE,
            "query_target": F.cosine_similarity(example_query, target, dim=0).item(),
            "query_interference": F.cosine_similarity(example_query, other, dim=0).item(),
            "target_interference": F.cosine_similarity(target, other, dim=0).item(),
            "ear_right": right,
        }
        values["margin"] = values["query_target"] - values["query_interference"]
        for name, value in values.items():
            found[name].append(float(value))
        advance(1)
    return {name: np.array(values) for name, values in found.items()}


def spectrum_shares(waveform: Tensor, filters: Tensor) -> Tensor:
    """Return the distribution of a waveform's energy (n,) over mel bands, (BANDS,), with a sum of 1."""
    power = stft(waveform[None], 1024, 320).abs().square().mean(1)[0] @ filters
    return power / power.sum().clamp(min=1e-12)


def thirds(name: str, values: np.ndarray, figures: Figures) -> Property:
    """Return the figures of the thirds of rows by a property (rows,); for a property with two values, of both."""
    gains = figures.values[GAIN]
    there = ~np.isnan(values) & ~np.isnan(gains)
    distinct = np.unique(values[there])
    edges = distinct if len(distinct) <= 2 else np.quantile(values[there], [0, 1 / 3, 2 / 3])
    place = np.searchsorted(edges, values, side="right") - 1
    bootstrap = TwoLevel(figures.labels, [str(group) for group in figures.groups])
    parts = []
    for at in range(len(edges)):
        inside = there & (place == at)
        if not inside.any():
            continue
        means = [
            bootstrap.mean(np.where(inside, figures.values[figure], np.nan)) for figure in (GAIN, WRONG, OWN, BOUND)
        ]
        parts.append(Third(float(values[inside].min()), float(values[inside].max()), *means))
    correlation = (
        float(np.corrcoef(rankdata(values[there]), rankdata(gains[there]))[0, 1]) if len(distinct) > 1 else float("nan")
    )
    return Property(name, correlation, parts)


def losses(figures: Figures) -> list[tuple[str, Estimate]]:
    """Return the steps in dB from the gain with one clip as query to the ideal mask's, on the rows that have all."""
    bootstrap = TwoLevel(figures.labels, [str(group) for group in figures.groups])
    gain, own, bound = (figures.values[name] for name in (GAIN, OWN, BOUND))
    there = ~np.isnan(gain) & ~np.isnan(own)
    gain, own, bound = (np.where(there, values, np.nan) for values in (gain, own, bound))
    # If even the target itself as query gives the wrong sound, the mixture is hard; else the mask is the cause.
    wrong = figures.values["mixture/own/wrong"] == 1
    turned = np.where(wrong, bound, own)
    return [
        ("asked by one clip", bootstrap.mean(gain)),
        ("+ if the query were the sound itself", bootstrap.difference(own, gain)),
        ("+ if it then never went to the wrong sound", bootstrap.difference(turned, own)),
        ("+ if its masks were ideal", bootstrap.difference(bound, turned)),
        ("the ideal mask", bootstrap.mean(bound)),
    ]


def worst(figures: Figures, count: int) -> list[int]:
    """Return the places of the rows with the lowest gain for one clip as query, one for each class."""
    found: dict[str, int] = {}
    for at in np.argsort(figures.values[GAIN], kind="stable"):  # NaN comes last
        if not np.isnan(figures.values[GAIN][at]):
            found.setdefault(figures.labels[at], int(at))
    return list(found.values())[:count]
