"""Refinement of queries by their estimates: the rule, the refined query, and what the engine does with it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import checkpoints
from models.audio import Waveform
from models.detector_runner import DetectorRunner
from models.engine import Engine
from models.options import SeparationOptions
from models.plda import root
from models.precision import Arithmetic
from models.query import BASE_RULES, QueryRules
from models.refinement import Refinement, RefinementRule
from tests.models import demo_recordings

RULE = RefinementRule(starts=0.5, ends=0.9, share=0.6)

pytestmark = pytest.mark.usefixtures("one_thread")


class Spectra:
    """A detector whose embeddings are coarse power spectra."""

    rate = 32_000
    embedding_size = 8

    def embed(self, waveforms: Tensor) -> Tensor:
        power = torch.fft.rfft(waveforms).abs().square()[:, 1:]
        bands = power[:, : power.shape[1] // 8 * 8].unflatten(1, (8, -1)).sum(2)
        return bands / bands.sum(1, keepdim=True)


def tone(hertz: float, seconds: float = 2.0) -> Tensor:
    times = torch.arange(round(seconds * Spectra.rate)) / Spectra.rate
    return 0.1 * torch.sin(2 * torch.pi * hertz * times)[None]


@pytest.fixture
def refinement() -> Refinement:
    return Refinement(RULE, DetectorRunner(Spectra(), Arithmetic.of("cpu", "exact")), BASE_RULES, None)


@pytest.mark.parametrize(
    ("likeness", "weight"), [(-1.0, 0.0), (0.5, 0.0), (0.7, 0.3), (0.9, 0.6), (1.0, 0.6), (float("nan"), 0.0)]
)
def test_the_estimates_share_rises_with_likeness(likeness: float, weight: float) -> None:
    assert RULE.weight(likeness) == pytest.approx(weight)


@pytest.mark.parametrize("wrong", [{"starts": 0.9, "ends": 0.8}, {"share": 0.0}, {"share": 1.5}, {"starts": -0.1}])
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no rule"):
        RefinementRule.of(wrong)


def test_a_query_moves_towards_an_estimate_that_agrees(refinement: Refinement) -> None:
    estimate = tone(1_000.0)
    (found,) = Spectra().embed(estimate)
    asked = found + 0.5 * torch.eye(8)[5]
    refined = refinement(asked, estimate)
    assert refined is not None
    share = RULE.weight(F.cosine_similarity(asked, found, dim=0).item())
    assert 0 < share < RULE.share
    torch.testing.assert_close(root(refined), (1 - share) * root(asked) + share * root(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimate", [tone(15_000.0), torch.zeros(1, 64_000), torch.zeros(1, 0)])
def test_a_query_stays_where_the_estimate_is_another_sound_or_none(refinement: Refinement, estimate: Tensor) -> None:
    (asked,) = Spectra().embed(tone(1_000.0))
    assert refinement(asked, estimate) is None


def test_the_engine_asks_again_with_the_refined_query() -> None:
    """With one query of one window, the stem is that of the refined query without refinement."""
    mixture, example = demo_recordings.recording("mixture"), demo_recordings.recording("example")
    rule = {"starts": 0.0, "ends": 0.01, "share": 0.5}  # every estimate counts
    engines = []
    for config in ({"refinement": rule}, {}):
        bundle = checkpoints.load("base")
        kept = {name: entry for name, entry in bundle.config.items() if name != "refinement"}
        engines.append(Engine(dataclasses.replace(bundle, config=kept | config), "cpu", "exact"))
    refining, plain = engines
    short = Waveform(mixture.samples[:, : 4 * mixture.rate], mixture.rate)
    query = plain.embed([example])
    options = SeparationOptions(gate=False)
    refined_stem = refining.separate(short, {"it": query}, options).stems["it"].samples
    first = plain.separate(short, {"it": query}, options).stems["it"].samples
    assert not torch.allclose(refined_stem, first, atol=1e-3)
    bundle = checkpoints.load("base")
    runner = DetectorRunner(bundle.detector, Arithmetic.of("cpu", "exact"))
    again = Refinement(RefinementRule.of(rule), runner, QueryRules(**bundle.config["query"]), bundle.prior)
    vector = again(query.vector, first)
    assert vector is not None
    asked_again = plain.separate(short, {"it": dataclasses.replace(query, vector=vector)}, options).stems["it"].samples
    error = (refined_stem - asked_again).square().sum() / asked_again.square().sum()
    assert 10 * error.log10() < -25, "the window's padding is all that the two do not share"
