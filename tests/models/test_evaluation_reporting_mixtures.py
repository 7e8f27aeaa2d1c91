"""Reporting mixtures: the rules of a draw, the rendering of rows, and the committed list."""

import csv
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import are_related
from models.evaluation import reporting_mixtures
from models.evaluation.mixture_figures import in_sparse
from models.evaluation.reporting_mixtures import MixtureRow
from models.labels import find
from models.validation.rendering import Sounds, add_third, loudest_start, mix_sources, sounding
from tests.models import small_corpus, tones


@pytest.fixture(scope="module")
def clips() -> Clips:
    return tones.corpus()


@pytest.fixture(scope="module")
def mixture_rows(clips: Clips) -> list[MixtureRow]:
    return reporting_mixtures.draw(clips, tones.corpus("train"), 60)


def keys(row: MixtureRow) -> set[str]:
    return {row.target, row.interference, *row.examples, row.absent}


def test_a_corpus_without_sounds_that_go_together_is_refused() -> None:
    of_two_classes = small_corpus.clips(("Dog", "Siren"))
    with pytest.raises(ValueError, match="this corpus is too small"):
        reporting_mixtures.draw(of_two_classes, of_two_classes, 4)
    twice = Clips(
        np.tile(of_two_classes.samples, 2),
        [
            Clip(
                f"{at}{clip.key}",
                clip.start + at * len(of_two_classes.samples),
                RATE,
                clip.mids,
                f"{at}{clip.group}",
                "effect",
                {},
            )
            for at in range(2)
            for clip in of_two_classes.clips
        ],
    )
    with pytest.raises(ValueError, match="no two sounds of other classes, unrelated to"):
        reporting_mixtures.draw(twice, twice, 4)


def test_halves_lengths_and_classes_are_drawn_evenly(mixture_rows: list[MixtureRow]) -> None:
    assert Counter(row.half for row in mixture_rows) == {"choose": 30, "report": 30}
    assert Counter(row.seconds for row in mixture_rows) == {2: 30, 4: 30}
    assert set(Counter(row.label for row in mixture_rows).values()) <= {14, 15, 16}
    first = [row.half for row in mixture_rows[:10]]
    assert Counter(first) == {"choose": 5, "report": 5}


def test_no_source_group_is_in_both_halves(clips: Clips, mixture_rows: list[MixtureRow]) -> None:
    sounds = Sounds(clips)
    groups = [
        {sounds.clip(key).group for row in mixture_rows if row.half == half for key in keys(row)}
        for half in reporting_mixtures.HALVES
    ]
    assert groups[0] and groups[1]
    assert not groups[0] & groups[1]


def test_rows_ask_with_other_groups_of_the_class_and_mix_unrelated_ones(
    clips: Clips, mixture_rows: list[MixtureRow]
) -> None:
    sounds = Sounds(clips)
    for row in mixture_rows:
        target, interference, absent = (sounds.clip(key) for key in (row.target, row.interference, row.absent))
        assert len({target.mid, interference.mid, absent.mid}) == 3
        assert row.examples and len(set(row.examples)) == len(row.examples) <= reporting_mixtures.EXAMPLES
        for example in map(sounds.clip, row.examples):
            assert example.mid == target.mid
            assert example.group != target.group
        assert row.trained.startswith(f"train{row.label}")


def test_the_same_seed_draws_the_same_rows(clips: Clips) -> None:
    first, second, other = (reporting_mixtures.draw(clips, clips, 6, seed) for seed in (1, 1, 2))
    assert first == second != other


def test_a_list_is_read_as_it_was_written(mixture_rows: list[MixtureRow], tmp_path: Path) -> None:
    reporting_mixtures.write(mixture_rows, tmp_path / "rows.csv")
    assert reporting_mixtures.read(tmp_path / "rows.csv") == mixture_rows
    reporting_mixtures.write(mixture_rows[1:], tmp_path / "others.csv")
    assert reporting_mixtures.digest(tmp_path / "rows.csv") != reporting_mixtures.digest(tmp_path / "others.csv")


def test_another_table_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("path,labels\na.wav,Dog\n")
    with pytest.raises(ValueError, match="not a list of mixtures"):
        reporting_mixtures.read(tmp_path / "other.csv")


def test_a_corpus_without_two_groups_of_any_class_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="two source groups"):
        reporting_mixtures.draw(tones.corpus(groups=(1, 1, 1, 1)), tones.corpus("train"), 4)


@given(
    groups=st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=7), min_size=1, max_size=10),
)
@settings(max_examples=60)
def test_halves_leave_every_small_class_whole(groups: list[set[int]]) -> None:
    of_classes = {str(at): {str(name): [] for name in names} for at, names in enumerate(groups)}
    half_of = reporting_mixtures.split(of_classes)
    assert set(half_of) == {str(name) for names in groups for name in names}
    for names in groups:
        if 2 <= len(names) < 4:
            assert len({half_of[str(name)] for name in names}) == 1


def test_takes_of_one_sound_never_stand_against_one_another() -> None:
    def clip(mids: tuple[str, ...], group: str) -> Clip:
        return Clip("k", 0, 1, mids, group, "effect", {})

    dog, siren, animal = (find(label).mid for label in ("Dog", "Siren", "Animal"))
    assert reporting_mixtures.are_unrelated(clip((dog,), "a"), clip((siren,), "b"))
    assert not reporting_mixtures.are_unrelated(clip((dog,), "a"), clip((siren,), "a"))
    assert not reporting_mixtures.are_unrelated(clip((dog,), "a"), clip((siren, animal), "b"))


def test_both_sources_have_the_same_energy_where_the_target_sounds(
    clips: Clips, mixture_rows: list[MixtureRow]
) -> None:
    sounds = Sounds(clips)
    for row in mixture_rows[:20]:
        mix = reporting_mixtures.render(row, sounds)
        assert mix.mixture.shape == (row.seconds * RATE,)
        over = sounding(mix.target)
        energies = [np.square(part[over], dtype=np.float64).sum() for part in (mix.target, mix.interference)]
        assert energies[0] == pytest.approx(energies[1], rel=1e-3)
        assert np.allclose(mix.target + mix.interference, mix.mixture)
        assert np.abs(mix.mixture).max() <= 0.9901
        assert (sounding(mix.interference) & over).sum() >= 0.45 * over.sum()


def test_padding_is_no_part_of_a_level() -> None:
    random = np.random.default_rng(0)
    target, interference = np.zeros(RATE, np.float32), random.standard_normal(RATE).astype(np.float32) * 0.1
    target[: RATE // 4] = random.standard_normal(RATE // 4) * 0.02
    over = sounding(target)
    assert over[: RATE // 4].all() and not over[RATE // 4 :].any()
    mix = mix_sources(target, interference, over)
    assert np.square(mix.interference).sum() == pytest.approx(4 * np.square(mix.target).sum(), rel=0.1)


def test_a_third_source_is_as_strong_as_the_target() -> None:
    random = np.random.default_rng(0)
    first, second, third = (level * random.standard_normal(RATE).astype(np.float32) for level in (0.2, 0.1, 0.9))
    mix = add_third(mix_sources(first, second), third)
    assert np.abs(mix.mixture).max() <= 0.9901
    assert np.allclose(mix.target + mix.interference, mix.mixture, atol=1e-6)
    assert np.square(mix.interference).sum() == pytest.approx(2 * np.square(mix.target).sum(), rel=0.05)


@pytest.mark.parametrize(("length", "start"), [(1000, -1500), (4000, 0), (9600, 3200)])
def test_the_loudest_segment(length: int, start: int) -> None:
    clip = np.full(length, 0.01, np.float32)
    if length > 4000:
        clip[3300:7000] = 0.5
    assert loudest_start(clip, 4000) == start


def test_segments_are_silent_outside_their_clip() -> None:
    clips = Clips(np.full(100, 16384, np.int16), [Clip("k", 0, 100, ("/m/09x0r",), "g", "effect", {})])
    sounds = Sounds(clips)
    assert sounds.segment("k", -30, 200).nonzero()[0].tolist() == list(range(30, 130))
    assert sounds.segment("k", 60, 200).nonzero()[0].tolist() == list(range(40))
    assert not sounds.segment("k", -300, 200).any()
    assert not sounds.segment("k", 100, 200).any()
    with pytest.raises(ValueError, match="no clip other"):
        sounds.segment("other", 0, 10)
    with pytest.raises(ValueError, match="two clips have the key k"):
        Sounds(clips, clips)


def test_the_fifth_that_all_scenes_are_made_of_is_even_too() -> None:
    rows = [row for number, row in enumerate(reporting_mixtures.read()) if in_sparse(number)]
    assert len(rows) == 200
    assert Counter(row.half for row in rows) == {"choose": 100, "report": 100}
    assert Counter(row.seconds for row in rows) == {2: 100, 4: 100}
    assert len({row.label for row in rows}) >= 35


def test_the_committed_list_is_what_it_says(shared: Path) -> None:
    described = {}
    with tarfile.open(shared / "corpus" / "valid-000.tar") as tar:
        for member in tar:
            if member.name.endswith(".json") and (stored := tar.extractfile(member)):
                described[member.name.split(".")[0]] = json.loads(stored.read())
    rows = reporting_mixtures.read()
    assert len(rows) >= 1000
    assert Counter(row.seconds for row in rows) == {2: 500, 4: 500}
    assert reporting_mixtures.REPORTING.stat().st_size < 300_000
    halves: dict[str, set[str]] = {half: set() for half in reporting_mixtures.HALVES}
    for row in rows:
        target, interference, absent = (described[key] for key in (row.target, row.interference, row.absent))
        assert target["labels"][0] == row.label
        for one, two in ((target, interference), (target, absent), (interference, absent)):
            assert not are_related(one["mids"][0], two["mids"][0])
        for example in row.examples:
            assert described[example]["mids"] == target["mids"]
            assert described[example]["group"] != target["group"]
        assert row.trained and row.trained not in described
        halves[row.half] |= {described[key]["group"] for key in keys(row)}
    assert not halves["choose"] & halves["report"]
    of_class = Counter((row.half, row.label) for row in rows)
    for half in reporting_mixtures.HALVES:
        counts = [count for (of, _), count in of_class.items() if of == half]
        assert max(counts) - min(counts) <= 1
    with (reporting_mixtures.REPORTING).open(newline="") as file:
        assert csv.DictReader(file).fieldnames == [
            *("half", "label", "seconds", "target", "target_start", "interference", "interference_start"),
            *("examples", "absent", "trained"),
        ]
