"""Evaluation of tagging: metrics against scikit-learn's, known and unknown classes of labels, and the command."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from models.corpus.clips import RATE, Clip
from models.evaluation.detectors import tagging
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.evaluation.detectors.ranking import area_under_curve, average_precision, d_prime
from models.evaluation.reports import group_bootstrap
from models.labels import classes, find
from tests.models.bands import BandDetector, tone

EVERYTHING = frozenset(label.mid for label in classes())


def clip(group: str, *names: str) -> Clip:
    return Clip(group, 0, 0, tuple(find(name).mid for name in names), group, "effect", {})


# Ranking

RANKED = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40)


@settings(max_examples=200, deadline=None)
@given(RANKED)
def test_ranking_agrees_with_scikit_learn_ties_and_weights_included(ranked: list[tuple[int, bool, int]]) -> None:
    scores, there, times = (np.array(column) for column in zip(*ranked, strict=True))
    weighted = there * times
    if not weighted.sum() or weighted.sum() == times.sum():
        assert np.isnan(area_under_curve(scores, there, times))
        return
    repeated = np.repeat(there, times), np.repeat(scores, times)
    assert average_precision(scores, there, times) == pytest.approx(average_precision_score(*repeated))
    assert area_under_curve(scores, there, times) == pytest.approx(roc_auc_score(*repeated))


def test_draws_are_ranked_at_once_as_they_are_one_by_one() -> None:
    random = np.random.default_rng(0)
    scores, there, times = random.random(30), random.random(30) < 0.3, random.integers(0, 3, (5, 30))
    for figure in (average_precision, area_under_curve):
        assert figure(scores, there, times) == pytest.approx(np.array([figure(scores, there, row) for row in times]))


def test_what_is_not_there_has_no_figure() -> None:
    scores, nowhere = np.array([0.1, 0.2]), np.array([False, False])
    assert np.isnan(average_precision(scores, nowhere))
    assert np.isnan(area_under_curve(scores, nowhere))


@pytest.mark.parametrize(("area", "expected"), [(0.5, 0), (0.7602, 1), (0.9214, 2)])
def test_d_prime_is_the_distance_of_two_bells(area: float, expected: float) -> None:
    assert d_prime(area) == pytest.approx(expected, abs=1e-3)


# Draws


def test_a_group_is_drawn_whole_and_on_average_once() -> None:
    drawn = group_bootstrap.weights(["a", "b", "a", "c"], draws=4000)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.05)


def test_nothing_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        group_bootstrap.weights([])


def test_an_interval_leaves_out_draws_without_a_figure() -> None:
    assert group_bootstrap.interval(np.append(np.arange(1000.0), np.nan)) == pytest.approx((24, 974), abs=1)
    assert np.isnan(group_bootstrap.interval(np.full(3, np.nan))).all()


# What labels say


@pytest.mark.parametrize(
    ("labels", "asked", "there", "counted"),
    [
        (["Bark"], "Bark", True, True),
        (["Bark"], "Dog", True, True),  # a bark is a dog's
        (["Bark"], "Animal", True, True),
        (["Dog"], "Bark", False, False),  # a dog may bark or not
        (["Dog"], "Cat", False, True),
        (["Orchestra"], "Violin, fiddle", False, False),  # an ensemble may hold it
        (["Dog", "Violin, fiddle"], "Violin, fiddle", True, True),
        (["Dog", "Bark"], "Bark", True, True),  # one label is open, the other says so
        (["Dog", "Siren"], "Bark", False, False),
    ],
)
def test_ancestors_are_there_and_descendants_are_unknown(
    labels: list[str], asked: str, there: bool, counted: bool
) -> None:
    found = tagging.truth([clip("a", *labels)], [find(asked).mid])
    assert [column.item() for column in found] == [there, counted]


def column(name: str) -> int:
    index = find(name).index
    assert index is not None
    return index


def scores_of(clips: list[Clip], certain: dict[int, list[str]]) -> np.ndarray:
    scores = np.zeros((len(clips), len(classes())))
    for row, names in certain.items():
        scores[row, [column(name) for name in names]] = 1
    return scores


def test_an_ancestor_or_a_descendant_is_not_wrong() -> None:
    clips = [clip("a", "Dog"), clip("b", "Siren"), clip("c", "Bark")]
    # It hears a bark in the dog's clip, which nobody labelled, and a dog where there is a bark.
    found = tagging.measure(scores_of(clips, {0: ["Dog", "Bark"], 1: ["Siren"], 2: ["Bark", "Dog"]}), clips, EVERYTHING)
    assert found.mean_average_precision == found.area == 1
    by_name = {one.label: one for one in found.classes}
    assert (by_name["Dog"].clips, by_name["Dog"].groups, by_name["Dog"].left_out) == (2, 2, 0)
    assert (by_name["Bark"].clips, by_name["Bark"].left_out) == (1, 1)


def test_means_are_over_classes_and_not_over_clips() -> None:
    clips = [clip(f"dog {number}", "Dog") for number in range(8)] + [clip("siren", "Siren"), clip("rain", "Rain")]
    dogs: dict[int, list[str]] = {number: ["Dog"] for number in range(8)}
    found = tagging.measure(scores_of(clips, dogs | {8: ["Rain"], 9: ["Siren"]}), clips, EVERYTHING)
    # Dogs are all found; siren and rain are each ranked behind the other, with eight dogs tied behind.
    assert [one.label for one in found.classes] == ["Dog", "Rain", "Siren"]
    assert found.mean_average_precision == pytest.approx((1 + 0.1 + 0.1) / 3)
    assert found.chance == pytest.approx((0.8 + 0.1 + 0.1) / 3)


def test_classes_of_few_groups_and_classes_that_the_detector_lacks_are_left_out_by_name() -> None:
    clips = [clip("a", "Dog"), clip("b", "Dog"), clip("c", "Siren"), clip("d", "Rain"), clip("e", "Rain")]
    detector = EVERYTHING - {find("Rain").mid}
    found = tagging.measure(scores_of(clips, {0: ["Dog"]}), clips, detector, least_groups=2)
    assert [one.label for one in found.classes] == ["Dog"]
    assert found.unheard == ["Rain"]
    assert found.few == ["Siren"]
    with pytest.raises(ValueError, match="no class can be measured"):
        tagging.measure(scores_of(clips, {}), clips, detector, least_groups=3)


def test_the_interval_holds_the_figure_and_narrows_with_groups() -> None:
    random = np.random.default_rng(0)

    def width(count: int) -> float:
        clips = [clip(f"{name}{number}", name) for name in ("Dog", "Siren") for number in range(count)]
        scores = random.random((len(clips), len(classes())))
        for row, one in enumerate(clips):
            scores[row, column(one.label)] += 0.5
        found = tagging.measure(scores, clips, EVERYTHING)
        low, high = found.mean_average_precision_interval
        assert low < found.mean_average_precision < high
        return high - low

    assert width(100) < 0.6 * width(10)


# The ear


def test_a_long_clip_is_processed_to_its_end() -> None:
    detector = DetectorUnderTest("bands", BandDetector().eval(), "cpu")
    seconds = BandDetector.window_samples * 2 + RATE
    late = np.zeros(seconds, np.float32)
    late[-RATE // 4 :] = tone(2, RATE // 4, RATE).numpy()
    whole, part = detector.clipwise(late, RATE), detector.clipwise(late[-BandDetector.window_samples :], RATE)
    assert whole == pytest.approx(part)
    assert whole.argmax() == 2


def test_a_clip_at_another_rate_is_resampled_to_the_detectors() -> None:
    detector = DetectorUnderTest("bands", BandDetector().eval(), "cpu")
    heard = [detector.clipwise(tone(1, 2 * rate, rate).numpy(), rate) for rate in (RATE, 48_000)]
    assert heard[0] == pytest.approx(heard[1], abs=0.02)


# The command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tones and three noises in a shard, the tones at other pitches and the noises at other levels."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    sounds = [("Sine wave", tone(0, RATE, RATE, level).numpy()) for level in (0.1, 0.3, 0.5)]
    sounds += [("White noise", level * random.standard_normal(RATE)) for level in (0.02, 0.05, 0.1)]
    with tarfile.open(folder / "valid-000.tar", "w") as shard:
        for number, (name, samples) in enumerate(sounds):
            audio = io.BytesIO()
            soundfile.write(audio, samples, RATE, format="FLAC")
            described = {"labels": [name], "mids": [find(name).mid], "group": f"take {number}", "kind": "effect"}
            for suffix, content in (("flac", audio.getvalue()), ("json", json.dumps(described).encode())):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return folder


def test_the_command_evaluates_the_shipped_detector_on_a_corpus(corpus: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(tagging.evaluate_tagging)
    report, picture = tmp_path / "tagging.json", tmp_path / "tagging.png"
    arguments = ["--corpus", str(corpus), "--cache", str(tmp_path), "--output", str(report), "--plot", str(picture)]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ended.exit_code == 0
    found = json.loads(report.read_text())
    assert (found["clips"], found["groups"]) == (6, 6)
    assert {one["label"]: one["area"] for one in found["classes"]} == {"Sine wave": 1, "White noise": 1}
    assert picture.read_bytes().startswith(b"\x89PNG")
