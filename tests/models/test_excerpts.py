"""Excerpts of examples: they make the query that the recordings make, and are bounded together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import SilentQuery
from models.queries.excerpts import excerpts
from models.queries.query import BASE_RULES, PAPER_RULES, QueryRules, cut, embed
from tests.models.test_query import RATE, Bands

# Parts of a recording: seconds, and level; hardly any of them begins or ends with a window.
PARTS = st.lists(st.tuples(st.floats(0.05, 4.0), st.sampled_from([0.0, 1e-5, 0.03, 0.3])), min_size=1, max_size=6)
RULES = st.sampled_from([BASE_RULES, PAPER_RULES])


def recording_of(parts: list[tuple[float, float]], seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.cat([level * torch.randn(int(seconds * RATE), generator=noise) for seconds, level in parts])


def holds_sound(recording: Tensor, rules: QueryRules) -> bool:
    try:
        return len(cut(recording, RATE, rules).waveforms) > 0
    except SilentQuery:
        return False


@settings(max_examples=40, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), RULES)
def test_the_query_of_excerpts_is_that_of_the_recordings(examples: list[list[tuple[float, float]]], rules) -> None:
    """To the last bit, whatever is silent in them: the same windows count."""
    recordings = [recording_of(parts, seed) for seed, parts in enumerate(examples)]
    recordings = [recording for recording in recordings if holds_sound(recording, rules)]
    if not recordings:
        return
    found = excerpts(recordings, RATE, rules, 1e4)
    assert all(len(one) <= len(recording) for one, recording in zip(found, recordings, strict=True))
    original, again = (embed(Bands(), those, rules, "tests@1") for those in (recordings, found))
    assert torch.equal(again.vector, original.vector) and again.seconds_used == original.seconds_used


@settings(max_examples=40, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=8), RULES, st.floats(2.0, 12.0))
def test_excerpts_are_short_enough_together_and_hold_sound(examples, rules: QueryRules, most: float) -> None:
    recordings = [recording_of(parts, seed) for seed, parts in enumerate(examples)]
    recordings = [recording for recording in recordings if holds_sound(recording, rules)]
    if not recordings:
        return
    found = excerpts(recordings, RATE, rules, most)
    assert 0 < len(found) <= len(recordings) and sum(map(len, found)) <= most * RATE
    assert len(found) == len(recordings) or (len(found) + 1) * rules.window_seconds > most
    for one, recording in zip(found, recordings, strict=False):
        assert holds_sound(one, rules)
        assert any(torch.equal(one, part) for part in recording.unfold(0, len(one), 1)[:: hop_of(rules)])


def hop_of(rules: QueryRules) -> int:
    return rules.window_samples(RATE)[1]


def test_silence_around_the_sound_is_cut_off() -> None:
    second = torch.zeros(RATE)
    (found,) = excerpts([torch.cat([second.repeat(10), second + 0.1, second.repeat(10)])], RATE, BASE_RULES, 60.0)
    assert RATE <= len(found) <= 3 * RATE and math.isclose(float(found.sum()), 0.1 * RATE, rel_tol=1e-3)


def test_what_is_too_long_is_cut_to_where_the_most_sounds() -> None:
    """Not to where it is the loudest, and a short example is kept whole beside it."""
    generator = torch.Generator().manual_seed(0)
    click = torch.cat([torch.randn(RATE // 2, generator=generator) * 0.3, torch.zeros(10 * RATE)])
    bark = torch.randn(5 * RATE, generator=generator) * 0.1
    short = torch.randn(RATE, generator=generator)
    long, kept = excerpts([torch.cat([click, bark]), short], RATE, BASE_RULES, 5.0)
    assert torch.equal(kept, short[: len(kept)]) and len(kept) >= 0.96 * RATE
    assert 3 * RATE <= len(long) <= 4.1 * RATE and (long != 0).all()


@pytest.mark.parametrize("rules", [BASE_RULES, PAPER_RULES])
def test_a_silent_example_has_no_excerpt(rules: QueryRules) -> None:
    with pytest.raises(SilentQuery):
        excerpts([torch.zeros(RATE)], RATE, rules, 60.0)
