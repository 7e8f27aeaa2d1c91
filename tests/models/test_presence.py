import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.separation.presence import (
    FEATURES,
    LOWEST_GAIN_DB,
    Gate,
    Levels,
    QuerySimilarity,
    Rule,
    features,
    level_db,
    measure,
)
from tests.models.bands import BANDS, RATE, BandDetector, tone

RULE = Rule(window_seconds=0.5)


def embed_windows(windows: torch.Tensor) -> torch.Tensor:
    return BandDetector().embed(windows)


def measure_features(asked: int, mixture: torch.Tensor, estimate: torch.Tensor) -> dict[str, float]:
    return dict(
        zip(
            FEATURES,
            measure(embed_windows, RATE, RULE, torch.eye(BANDS)[asked], mixture, estimate).tolist(),
            strict=True,
        )
    )


def test_a_target_present_in_one_window_is_distinguished_from_an_absent_one():
    mixture = torch.cat([tone(1, 2 * RATE, RATE), tone(2, RATE // 2, RATE)])
    estimate = torch.cat([torch.zeros(2 * RATE), tone(2, RATE // 2, RATE)])
    there = measure_features(2, mixture, estimate)
    assert there["mixture_likeness"] == pytest.approx(1, abs=0.02)
    assert there["estimate_likeness"] == pytest.approx(1, abs=0.02)
    assert there["estimate_level"] == pytest.approx(-7, abs=0.1)
    absent = measure_features(3, mixture, torch.zeros_like(mixture))
    assert absent["mixture_likeness"] < 0.1
    assert absent["estimate_likeness"] == 0
    assert absent["estimate_level"] == -60
    presences = [RULE.presence(torch.tensor(list(found.values()))) for found in (there, absent)]
    assert presences[0] > 0.9
    assert presences[1] < 0.05


def test_silence_is_no_window_to_learn_from():
    similarity = QuerySimilarity(embed_windows, RATE, RULE, torch.eye(BANDS))
    similarity.add(torch.cat([torch.zeros(RATE), tone(1, RATE, RATE), 1e-3 * tone(2, RATE, RATE)])[None])
    similarity.finish()
    assert len(similarity.similarities(1)) == 2, "half seconds of the loud tone; those 60 dB below it do not count"


def test_a_silent_mixture_has_features_too():
    silence = torch.zeros(RATE)
    assert list(measure_features(0, silence, silence).values()) == [0, 0, -60]
    assert list(measure_features(0, silence[:0], silence[:0]).values()) == [0, 0, -60]


@settings(max_examples=20, deadline=None)
@given(block=st.integers(500, 40000))
def test_blocks_do_not_matter(block):
    recording = torch.randn(2, 50000, generator=torch.Generator().manual_seed(0))
    answers = []
    for size in (50000, block):
        similarity = QuerySimilarity(embed_windows, RATE, RULE, torch.eye(BANDS)[:2], shared=False)
        levels = Levels(RATE, 2)
        for part in recording.split(size, dim=1):
            similarity.add(part)
            levels.add(part[:, None])
        similarity.finish()
        answers.append(
            torch.tensor([*similarity.similarities(0), *similarity.similarities(1), *levels.steps().flatten()])
        )
    assert torch.allclose(answers[0], answers[1], rtol=1e-5)
    assert levels.steps().sum() == pytest.approx(recording.square().sum().item(), rel=1e-5)


def test_features_stay_within_their_ranges():
    assert features(torch.zeros(0), torch.tensor([0.5]), -200.0).tolist() == [0, 0.5, -60]
    assert features(torch.tensor([0.2, 0.4]), torch.zeros(0), 40.0).tolist() == pytest.approx([0.4, 0, 10])
    assert level_db(1.0, 0.0) == -60
    assert level_db(1.0, 10.0) == pytest.approx(-10)


def test_the_gain_is_a_ramp_in_decibels():
    rule = Rule(opens=0.5, closes=0.1)
    assert [round(rule.gain_db(presence), 6) for presence in (0.0, 0.1, 0.3, 0.5, 1.0)] == [-30, -30, -15, 0, 0]


def test_a_rule_is_read_from_a_models_configuration():
    rule = Rule.of({"weights": [1, 2, 3], "bias": -1.0, "window_seconds": 0.96})
    assert (rule.weights, rule.bias, rule.window_seconds, rule.opens) == ((1, 2, 3), -1.0, 0.96, 0.5)
    with pytest.raises(ValueError, match="2 weights"):
        Rule.of({"weights": [1, 2]})
    with pytest.raises(TypeError):
        Rule.of({"wieghts": [1, 2, 3, 4]})


def test_a_present_target_is_not_touched_and_its_leakage_goes_down():
    loud, leak = [1.0] * 10, [1e-6] * 20
    gate = Gate(torch.tensor(loud + leak + loud), 0.0)
    gains = gate.gains(0, 20 * RATE, RATE)
    assert gate.is_active
    assert gains[: round(5.75 * RATE)].min() == 1.0, "the end of the sound stays open"
    assert gains[round(14.25 * RATE) :].min() == 1.0, "and its next beginning"
    assert 20 * gains[10 * RATE].log10() == pytest.approx(-12, abs=0.1)
    assert (gains[1:] - gains[:-1]).abs().max() < 1e-3, "slow enough to be inaudible"
    assert not Gate(torch.tensor(loud), 0.0).is_active


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(LOWEST_GAIN_DB, 0))
def test_a_gate_never_goes_below_its_lowest_gain_nor_above_its_own(energies, gain_db):
    gains = Gate(torch.tensor(energies), gain_db).gains(0, 30000, 1000)
    assert gains.min() >= 10 ** (LOWEST_GAIN_DB / 20) * 0.9999
    assert gains.max() <= 10 ** (gain_db / 20) * 1.0001


def test_gains_do_not_depend_on_blocks():
    gate = Gate(torch.rand(20, generator=torch.Generator().manual_seed(0)) ** 12, -3.0)
    whole = gate.gains(0, 100000, 11025)
    assert torch.equal(torch.cat([gate.gains(start, 12500, 11025) for start in range(0, 100000, 12500)]), whole)
