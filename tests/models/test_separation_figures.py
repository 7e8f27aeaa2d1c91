"""Figures of a separator whose figures are known beforehand: it lets bands pass, and sources are tones in bands."""

import numpy as np
import pytest
import torch

from models.evaluation.model_under_test import ideal_mask
from models.validation import separation_figures
from models.validation.metrics import si_sdr
from models.validation.mixtures import Mixture, Row
from tests.models.bands import CENTRES, RULES, BandDetector, BandSeparator


def tone(band: int) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * CENTRES[band] * np.arange(64_000) / 32_000)).astype(np.float32)


def row(target: int, interference: int, query: int, absent: int) -> Mixture:
    listed = Row("a", 0, "b", 0, "c", "d", f"band {target}")
    return Mixture(listed, tone(target) + tone(interference), tone(target), tone(query), tone(absent))


@pytest.fixture(scope="module")
def rows() -> list[Mixture]:
    """Two that the separator gets right, and one whose query is the interference's."""
    return [row(0, 1, 0, 3), row(1, 2, 1, 3), row(2, 0, 0, 3)]


@pytest.fixture(scope="module")
def figures(rows: list[Mixture]) -> dict[str, torch.Tensor]:
    query, absent = (separation_figures.queries_of(BandDetector(), rows, kind, RULES) for kind in ("query", "absent"))
    return separation_figures.figures(BandSeparator(), rows, query, absent)


def test_right_and_wrong_sounds_are_distinguished(figures: dict[str, torch.Tensor]) -> None:
    assert figures["wrong"].tolist() == [False, False, True]
    assert figures["si_sdri"][:2].min() > 15
    assert figures["si_sdri"][2] < -10
    assert figures["absent"].min() > 15


def test_the_summary_counts_wrong_ones_in_the_mean_and_leaves_them_out_of_the_rest(
    figures: dict[str, torch.Tensor],
) -> None:
    summary = separation_figures.summary(figures)
    assert summary["wrong"] == pytest.approx(1 / 3)
    assert summary["si_sdri"] == pytest.approx(figures["si_sdri"].mean().item())
    assert summary["right_si_sdri"] == pytest.approx(figures["si_sdri"][:2].mean().item())


def test_the_ideal_mask_is_a_bound(rows: list[Mixture], figures: dict[str, torch.Tensor]) -> None:
    targets, mixtures = separation_figures.stack(rows, "target"), separation_figures.stack(rows, "mixture")
    ideal = ideal_mask(BandSeparator(), mixtures, targets)
    bound = si_sdr(ideal, targets) - si_sdr(mixtures, targets)
    assert (bound >= figures["si_sdri"]).all()
