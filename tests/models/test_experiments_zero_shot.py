"""Unseen classes beside seen ones, with models whose ears are known: they hear all bands, or are deaf to one."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.checkpoints import Bundle
from models.corpus.clips import RATE, Clips
from models.errors import CheckpointInvalid
from models.evaluation.model_under_test import ModelUnderTest
from models.experiments import zero_shot
from models.experiments.zero_shot_report import Report, draw_gaps
from models.labels import find
from models.validation.rendering import Sounds
from tests.models import tones
from tests.models.bands import bundle

DOG, WIND = find("Dog").mid, find("Wind").mid
HELD_OUT = [DOG, WIND]
ROWS = 24


@pytest.fixture(scope="module")
def valid() -> Clips:
    return tones.corpus()


@pytest.fixture(scope="module")
def train() -> Clips:
    return tones.corpus("train")


@pytest.fixture(scope="module")
def pairs(valid: Clips, train: Clips) -> list[zero_shot.Pair]:
    return zero_shot.draw(valid, train, HELD_OUT, ROWS)


def holding_out(name: str = "bands", mids: list[str] = HELD_OUT) -> Bundle:
    whole = bundle()
    whole.name = name
    whole.config = whole.config | {"name": name, "held_out": mids}
    return whole


def ignore_unseen() -> ModelUnderTest:
    """A model that takes every query of the upper two bands, Dog's and Wind's, for the lowest one's."""
    subject = ModelUnderTest(holding_out("deaf"), "cpu")
    class_mids = subject.bundle.detector.embed

    def embed(waveforms: torch.Tensor) -> torch.Tensor:
        heard = class_mids(waveforms)
        heard[:, 0] += heard[:, 2] + heard[:, 3]
        heard[:, 2:] = 0
        return heard

    subject.bundle.detector.embed = embed
    return subject


@pytest.fixture(scope="module")
def figures(pairs: list[zero_shot.Pair], valid: Clips, train: Clips) -> zero_shot.PairFigures:
    return zero_shot.measure(ModelUnderTest(holding_out(), "cpu"), pairs, Sounds(valid, train))


@pytest.fixture(scope="module")
def deaf(pairs: list[zero_shot.Pair], valid: Clips, train: Clips) -> zero_shot.PairFigures:
    return zero_shot.measure(ignore_unseen(), pairs, Sounds(valid, train))


def test_every_mixture_is_of_an_unseen_and_a_seen_class(
    pairs: list[zero_shot.Pair], valid: Clips, train: Clips
) -> None:
    sounds, seen_keys = Sounds(valid, train), {clip.key for clip in valid.clips}
    assert Counter(row.mid for row in pairs) == {DOG: ROWS // 2, WIND: ROWS // 2}
    for row in pairs:
        unseen, seen = sounds.clip(row.unseen), sounds.clip(row.seen)
        assert unseen.mid == row.mid
        assert seen.mid not in HELD_OUT
        assert {row.seen, row.seen_query} <= seen_keys  # what it trained on would not be a fair neighbour
        for source, query in ((unseen, sounds.clip(row.unseen_query)), (seen, sounds.clip(row.seen_query))):
            assert query.mid == source.mid
            assert query.group != source.group
    assert {row.unseen for row in pairs} - seen_keys  # of the training split too: it never heard them


def test_the_validation_split_alone(valid: Clips) -> None:
    keys = {clip.key for clip in valid.clips}
    for row in zero_shot.draw(valid, None, HELD_OUT, 8):
        assert {row.unseen, row.seen, row.unseen_query, row.seen_query} <= keys


def test_both_sources_have_the_same_energy(pairs: list[zero_shot.Pair], valid: Clips, train: Clips) -> None:
    for row in pairs:
        mix = zero_shot.render(row, Sounds(valid, train))
        assert len(mix.mixture) == row.seconds * RATE
        assert np.square(mix.target).sum() == pytest.approx(np.square(mix.interference).sum(), rel=1e-3)


def test_the_same_seed_draws_the_same_rows(valid: Clips, train: Clips, pairs: list[zero_shot.Pair]) -> None:
    assert zero_shot.draw(valid, train, reversed(HELD_OUT), ROWS) == pairs
    other = zero_shot.draw(valid, train, HELD_OUT, ROWS, seed=1)
    assert other != pairs
    assert zero_shot.digest(other) != zero_shot.digest(pairs) == zero_shot.digest(list(pairs))


def test_a_clip_of_two_classes_is_unseen_if_one_of_them_is(valid: Clips) -> None:
    both = [replace(clip, mids=(find("Siren").mid, DOG)) if "Siren" in clip.key else clip for clip in valid.clips]
    rows = zero_shot.draw(Clips(valid.samples, both), None, HELD_OUT, 12)
    assert {row.seen[:7] for row in rows} == {"vSpeech"}
    assert any("Siren" in row.unseen for row in rows)


@pytest.mark.parametrize(
    ("mids", "which"),
    [([find("Church bell").mid], "held-out"), (list(tones.MIDS), "seen")],
)
def test_a_corpus_that_has_nothing_to_ask_with_is_refused(valid: Clips, mids: list[str], which: str) -> None:
    with pytest.raises(ValueError, match=f"no {which} class has clips of two source groups"):
        zero_shot.draw(valid, None, mids, 4)


def test_classes_of_one_group_are_named(train: Clips) -> None:
    valid = tones.corpus(groups=(3, 3, 3, 1))
    pairs = zero_shot.draw(valid, None, HELD_OUT, 4)
    assert {row.mid for row in pairs} == {DOG}
    assert zero_shot.classes_without_rows([valid], HELD_OUT, pairs) == ["Wind"]
    assert zero_shot.classes_without_rows([valid, train], HELD_OUT, zero_shot.draw(valid, train, HELD_OUT, 4)) == []


def test_only_a_model_that_names_its_held_out_classes_is_evaluated() -> None:
    assert zero_shot.classes_never_seen({"name": "a", "held_out": [DOG]}) == {DOG}
    with pytest.raises(CheckpointInvalid, match="does not list"):
        zero_shot.classes_never_seen({"name": "a"})
    with pytest.raises(CheckpointInvalid, match="trained on every class"):
        zero_shot.classes_never_seen({"name": "a", "held_out": []})


def test_a_model_without_preference_has_no_gap(figures: zero_shot.PairFigures) -> None:
    result = zero_shot.summarise(figures)
    assert result.means["unseen/si_sdri"].value > 10
    assert result.means["seen/si_sdri"].value > 10
    assert result.means["gap/si_sdri"].low > -3
    # What was cut out of the mixture itself is the best example there is.
    for side in zero_shot.SIDES:
        assert result.means[f"{side}{zero_shot.OWN}/si_sdri"].value >= result.means[f"{side}/si_sdri"].value - 0.5
    assert result.means["unseen/wrong"].value == result.means["seen/wrong"].value == 0


def test_a_model_that_ignores_unseen_classes_has_a_gap(deaf: zero_shot.PairFigures) -> None:
    result = zero_shot.summarise(deaf)
    gap = result.means["gap/si_sdri"]
    assert gap.high < -5
    assert gap.value == pytest.approx(result.means["unseen/si_sdri"].value - result.means["seen/si_sdri"].value)
    assert result.means["seen/wrong"].value == 0 < result.means["unseen/wrong"].value
    assert set(result.classes) == {"Dog", "Wind"}


def test_a_row_that_cannot_ask_for_one_of_its_sources_counts_for_neither(figures: zero_shot.PairFigures) -> None:
    values = {name: column.copy() for name, column in figures.values.items()}
    values["unseen/si_sdri"][:4] = np.nan
    result = zero_shot.summarise(replace(figures, values=values))
    assert {estimate.rows for estimate in result.means.values()} == {ROWS - 4}


def test_two_models_are_put_beside_one_another(
    figures: zero_shot.PairFigures, deaf: zero_shot.PairFigures, tmp_path: Path
) -> None:
    report = Report(holding_out("deaf"), deaf)
    alone = [table.title for table in report.tables()]
    report.put_beside(holding_out("bands"), figures)
    assert [table.title for table in report.tables()] == alone
    assert report.differences["unseen/si_sdri"].high < -5
    assert report.differences["gap/si_sdri"].value == pytest.approx(
        report.differences["unseen/si_sdri"].value - report.differences["seen/si_sdri"].value
    )
    console = Console(width=100, record=True, file=io.StringIO())
    for table in report.tables():
        console.print(table)
    shown = console.export_text()
    assert "deaf@1" in shown and "bands@1" in shown and "Dog" in shown
    whole = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert whole["held_out"] == ["Dog", "Wind"] or whole["held_out"] == ["Wind", "Dog"]
    assert whole["beside"]["model"] == "bands@1"
    assert len(whole["rows"]["values"]["gap/si_sdri"]) == ROWS
    draw_gaps(report, tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").stat().st_size > 10_000


def test_figures_of_other_mixtures_are_not_put_beside(figures: zero_shot.PairFigures) -> None:
    report = Report(holding_out(), figures)
    with pytest.raises(ValueError, match="different mixtures"):
        report.put_beside(holding_out(), replace(figures, rows=figures.rows[1:]))
