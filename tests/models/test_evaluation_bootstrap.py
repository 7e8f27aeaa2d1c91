"""Bootstrap intervals: their coverage, and their behaviour with hardly any data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.reports.bootstrap import TwoLevel

TRUTH = 5.0


def draw_values(
    random: np.random.Generator, classes: int, groups: int, rows: int
) -> tuple[list[str], list[str], np.ndarray]:
    """Two-level numbers around TRUTH: rows of a group are alike, groups of a class too."""
    of_class = random.normal(0, 2, classes)
    of_group = random.normal(0, 2, (classes, groups))
    values = TRUTH + of_class[:, None, None] + of_group[..., None] + random.normal(0, 0.5, (classes, groups, rows))
    places = [(str(one), str(two)) for one in range(classes) for two in range(groups) for _ in range(rows)]
    return [place[0] for place in places], [place[1] for place in places], values.ravel()


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        classes, groups, values = draw_values(random, 25, 4, 3)
        estimate = TwoLevel(classes, groups, draws=300).mean(values)
        held += estimate.low <= TRUTH <= estimate.high
    assert 0.92 <= held / 200 <= 0.99, held


def test_intervals_over_rows_alone_would_be_too_narrow() -> None:
    classes, groups, values = draw_values(np.random.default_rng(1), 25, 4, 10)
    ours = TwoLevel(classes, groups).mean(values)
    every_row = [str(at) for at in range(len(values))]
    rows_alone = TwoLevel(every_row, every_row).mean(values)
    assert ours.value == pytest.approx(rows_alone.value)
    assert ours.high - ours.low > 2 * (rows_alone.high - rows_alone.low)


def test_a_paired_difference_is_surer_than_its_parts() -> None:
    classes, groups, values = draw_values(np.random.default_rng(2), 20, 4, 3)
    bootstrap = TwoLevel(classes, groups)
    better = values + np.random.default_rng(3).normal(0.5, 0.1, len(values))
    difference, before, after = bootstrap.difference(better, values), bootstrap.mean(values), bootstrap.mean(better)
    assert difference.value == pytest.approx(after.value - before.value)
    assert 0.4 < difference.low < 0.5 < difference.high < 0.6
    assert after.low < before.high  # unpaired, nothing could be said


@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 6),
    groups=st.integers(1, 4),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    missing=st.floats(0, 0.7),
)
@settings(max_examples=40)
def test_figures_are_those_of_the_rows_that_are_there(
    seed: int, classes: int, groups: int, share: float, missing: float
) -> None:
    random = np.random.default_rng(seed)
    names, takes, values = draw_values(random, classes, groups, 5)
    values[random.random(len(values)) < missing] = np.nan
    there = values[~np.isnan(values)]
    bootstrap = TwoLevel(names, takes, draws=100)
    mean, quantile = bootstrap.mean(values), bootstrap.quantile(values, share)
    assert mean.rows == quantile.rows == len(there)
    if not len(there):
        assert math.isnan(mean.value) and math.isnan(quantile.value)
        return
    assert mean.value == pytest.approx(there.mean())
    assert quantile.value == np.quantile(there, share, method="inverted_cdf")
    for estimate in (mean, quantile):
        assert math.isnan(estimate.low) or there.min() - 1e-9 <= estimate.low <= estimate.high <= there.max() + 1e-9


@given(constant=st.floats(-50, 50))
@settings(max_examples=20)
def test_what_never_varies_has_an_interval_of_no_width(constant: float) -> None:
    bootstrap = TwoLevel(["a", "a", "b"], ["1", "2", "1"], draws=50)
    for estimate in (bootstrap.mean(np.full(3, constant)), bootstrap.quantile(np.full(3, constant), 0.5)):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((constant,) * 3)


def test_the_same_seed_gives_the_same_interval() -> None:
    classes, groups, values = draw_values(np.random.default_rng(4), 5, 3, 2)
    first, second, other = (TwoLevel(classes, groups, seed=seed).mean(values) for seed in (0, 0, 1))
    assert first == second
    assert first.low != other.low


def test_one_group_tells_no_spread() -> None:
    estimate = TwoLevel(["a"] * 4, ["1"] * 4).mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert estimate.value == 2.5
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_one_class_has_the_spread_of_its_groups() -> None:
    estimate = TwoLevel(["a"] * 4, ["1", "1", "2", "2"]).mean(np.array([1.0, 1.0, 3.0, 3.0]))
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 2.0, 3.0)


def test_groups_of_the_same_name_in_two_classes_are_two() -> None:
    estimate = TwoLevel(["a", "b"], ["1", "1"]).mean(np.array([0.0, 1.0]))
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_no_rows_at_all() -> None:
    assert TwoLevel([], []).mean(np.zeros(0)).rows == 0


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows have a class, and 1 a group"):
        TwoLevel(["a", "b"], ["1"])
    with pytest.raises(ValueError, match="3 values for 2 rows"):
        TwoLevel(["a", "b"], ["1", "1"]).mean(np.zeros(3))
