"""Training mixtures: their sources, queries and targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.corpus.augmentation import FILTER_POINTS, equalise, filter_curves, filter_points, in_rooms, play, rooms
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import (
    ancestors,
    are_related,
    descendants,
    self_and_ancestors,
    siblings,
    uncertain_classes,
    with_descendants,
)
from models.labels import find
from models.training.mixing import Mixer
from models.training.recipe import LASTING, Recipe
from tests.models import small_corpus

STFT = (1024, 320, 800)


def mid(name: str) -> str:
    return find(name).mid


@pytest.fixture(scope="module")
def clips() -> Clips:
    return small_corpus.clips()


def mixer(clips: Clips, seed: int = 0, mixtures: int = 4, **recipe: float) -> Mixer:
    made = Recipe(mixtures=mixtures, seconds=1.0, **recipe)  # type: ignore[arg-type]
    return Mixer(clips, small_corpus.embeddings(clips), made, STFT, seed)


def test_relations_know_the_graph_and_what_ensembles_hold() -> None:
    assert mid("Animal") in ancestors(mid("Bark"))
    assert mid("Bark") in descendants(mid("Dog")) and mid("Dog") not in descendants(mid("Dog"))
    assert with_descendants([mid("Dog")]) == descendants(mid("Dog")) | {mid("Dog")}
    for first, second in [("Dog", "Bark"), ("Bark", "Animal"), ("Dog", "Dog"), ("Music", "Piano")]:
        assert are_related(mid(first), mid(second)) and are_related(mid(second), mid(first))
    for first, second in [("Music", "Singing"), ("Singing", "Music"), ("Drum kit", "Snare drum")]:
        assert are_related(mid(first), mid(second))
    assert not are_related(mid("Dog"), mid("Piano")) and not are_related(mid("Piano"), mid("Snare drum"))
    assert siblings(mid("Trumpet"), mid("Trombone")) and not siblings(mid("Dog"), mid("Piano"))


def test_a_label_says_what_is_true_and_leaves_open_what_is_below_it() -> None:
    assert {mid("Dog"), mid("Animal")} <= self_and_ancestors(mid("Dog"))
    assert mid("Bark") in uncertain_classes(mid("Dog")) and mid("Cat") not in uncertain_classes(mid("Dog"))
    assert mid("Piano") in uncertain_classes(mid("Music"))
    assert not self_and_ancestors(mid("Dog")) & uncertain_classes(mid("Dog"))


def test_mixtures_are_the_sum_of_their_targets(clips: Clips) -> None:
    batch = mixer(clips, third_source=0.0, single_source=0.0, absent=0.0).batch(0)
    both = batch.targets.unflatten(0, (-1, 2)).sum(1)
    assert torch.allclose(both, batch.mixture, atol=1e-4 * batch.mixture.abs().max().item())


@given(seed=st.integers(0, 99), step=st.integers(0, 10**9))
@settings(max_examples=10, deadline=None)
def test_a_batch_depends_on_seed_and_step_alone(clips: Clips, seed: int, step: int) -> None:
    drawn = mixer(clips, seed)
    drawn.batch(step + 1)
    first, second = drawn.batch(step), mixer(clips, seed).batch(step)
    assert torch.equal(first.mixture, second.mixture) and torch.equal(first.queries, second.queries)
    assert not torch.equal(first.mixture, drawn.batch(step + 1).mixture)
    assert not torch.equal(first.mixture, mixer(clips, seed + 1).batch(step).mixture)


def test_processes_that_share_a_batch_make_the_whole_of_it(clips: Clips) -> None:
    drawn = mixer(clips)
    whole, parts = drawn.batch(7), [drawn.batch(7, part, 2) for part in range(2)]
    assert torch.allclose(torch.cat([part.mixture for part in parts]), whole.mixture, atol=1e-6)
    assert torch.allclose(torch.cat([part.targets for part in parts]), whole.targets, atol=1e-6)
    assert torch.equal(torch.cat([part.queries for part in parts]), whole.queries)
    with pytest.raises(ValueError, match="shared equally"):
        drawn.batch(7, 0, 3)


def test_absent_queries_have_silent_targets(clips: Clips) -> None:
    batch = mixer(clips, absent=1.0, third_source=0.0).batch(0)
    silent = batch.targets.abs().sum((1, 2)) == 0
    assert silent.tolist() == [False, True] * 4


def test_queries_come_from_other_groups_on_request(clips: Clips) -> None:
    marked = np.eye(len(clips.clips), dtype=np.float16)[:, None]  # the query says which clips it was made from
    drawn = Mixer(clips, marked, Recipe(mixtures=4, seconds=1.0, other_group=1.0), STFT)
    random = np.random.default_rng(0)
    for _ in range(20):
        index = int(random.integers(len(clips.clips)))
        assert drawn.draw_query(index, clips.clips[index].mid, True, [], random)[index] == 0


def test_wanted_classes_come_first_and_lasting_ones_interfere(clips: Clips) -> None:
    recipe = Recipe(mixtures=40, seconds=1.0, third_source=0.0, single_source=0.0, hard_negative=0.0)

    def classes(chosen: Recipe) -> list[frozenset[str]]:
        drawn = Mixer(clips, small_corpus.embeddings(clips), chosen, STFT)
        return drawn.renderer.classes_of(drawn.plan(0))

    noisy = classes(replace(recipe, wanted="Dog", wanted_share=1.0, lasting=1e6))
    assert all(mid("Dog") in mids for mids in noisy)
    assert {other for mids in noisy for other in mids - {mid("Dog")}} <= with_descendants(map(mid, LASTING))
    assert not all(mid("Dog") in mids for mids in classes(recipe))


@pytest.mark.parametrize("held_out", ["Siren", "Dog", "Wind"])
def test_what_is_held_out_never_reaches_a_batch(clips: Clips, held_out: str) -> None:
    """The batches are those, bit for bit, of a corpus that never had the class."""
    mids = with_descendants([mid(held_out)])
    without = clips.without(mids)
    names = tuple(name for name, _ in small_corpus.CLASSES if name != held_out)
    never = small_corpus.clips(names)
    assert {clip.mid for clip in without.clips} == {clip.mid for clip in never.clips}
    held, there = mixer(without), mixer(never)
    for step in range(20):
        assert not any(classes & mids for classes in held.renderer.classes_of(held.plan(step)))
        assert torch.equal(held.batch(step).mixture, there.batch(step).mixture)
        assert torch.equal(held.batch(step).queries, there.batch(step).queries)


def test_holding_out_a_class_takes_what_is_below_it_and_every_clip_that_has_it() -> None:
    samples = np.ones(4 * RATE, np.int16)
    labels = [("Bark",), ("Dog",), ("Animal",), ("Speech", "Dog")]
    listed = [
        Clip(str(number), number * RATE, RATE, tuple(map(mid, names)), str(number), "effect", {})
        for number, names in enumerate(labels)
    ]
    left = Clips(samples, listed).without(with_descendants([mid("Dog")]))
    assert [clip.key for clip in left.clips] == ["2"]


def test_no_label_of_a_clip_stands_against_its_own_kin() -> None:
    """Clips of several classes: dogs with speech may not be mixed with speech, nor with animals."""
    samples = (np.random.default_rng(0).standard_normal(6 * RATE) * 3000).astype(np.int16)
    labels = [("Dog", "Speech"), ("Speech",), ("Cat",), ("Animal",), ("Piano",), ("Music",)]
    listed = [
        Clip(str(number), number * RATE, RATE, tuple(map(mid, names)), str(number), "effect", {})
        for number, names in enumerate(labels)
    ]
    drawn = Mixer(Clips(samples, listed), None, Recipe(mixtures=8, queries=0, seconds=0.5, layered=0.5), STFT)
    for step in range(20):
        plan = drawn.plan(step)
        for mixture in range(8):
            sources = [place for place, owner in enumerate(plan.mixture_of_source) if owner == mixture]
            kinds = [
                {
                    label
                    for play, owner in enumerate(plan.source_of_play)
                    if owner == source
                    for label in listed[plan.clips[play]].mids
                }
                for source in sources
            ]
            for one in range(len(kinds)):
                for other in range(one):
                    assert not any(are_related(a, b) for a in kinds[one] for b in kinds[other])


def test_no_query_has_a_label_of_what_else_is_there() -> None:
    """A clip of dogs and speech is not an example of dogs if speech is the interference, nor of an absent class."""
    labels = [("Dog",), ("Dog", "Speech"), ("Siren",), ("Siren", "Speech"), ("Speech",), ("Piano",)]
    samples = (np.random.default_rng(0).standard_normal(2 * len(labels) * RATE) * 3000).astype(np.int16)
    listed = [
        Clip(
            f"{copy}{number}",
            (copy * len(labels) + number) * RATE,
            RATE,
            tuple(map(mid, names)),
            f"{copy}{number}",
            "effect",
            {},
        )
        for copy in range(2)
        for number, names in enumerate(labels)
    ]
    marked = np.eye(len(listed), dtype=np.float16)[:, None]  # a query says which clips it was made from
    recipe = Recipe(mixtures=16, seconds=0.5, absent=0.4, layered=0.0, other_group=1.0)
    drawn = Mixer(Clips(samples, listed), marked, recipe, STFT)
    for step in range(20):
        plan = drawn.plan(step)
        for (mixture, target), query in zip(plan.target_sources, plan.queries, strict=True):
            others = [
                label
                for play, source in enumerate(plan.source_of_play)
                if plan.mixture_of_source[source] == mixture and source != target
                for label in listed[plan.clips[play]].mids
            ]
            examples = [label for place in np.flatnonzero(query) for label in listed[place].mids]
            assert not any(are_related(one, other) for one in examples for other in others)


def test_a_corpus_of_kin_alone_is_refused() -> None:
    samples = np.full(2 * RATE, 1000, np.int16)
    listed = [Clip(name, at * RATE, RATE, (mid(name),), name, "effect", {}) for at, name in enumerate(("Dog", "Bark"))]
    drawn = Mixer(Clips(samples, listed), None, Recipe(queries=0, single_source=0.0), STFT)
    with pytest.raises(ValueError, match="nothing to mix it with"):
        drawn.plan(0)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_speed_moves_the_pitch(speed: float) -> None:
    tone = torch.from_numpy((20_000 * np.sin(2 * np.pi * 1_000 * np.arange(RATE) / RATE)).astype(np.int16))
    played = play_alone(tone, 0.0, speed, 16_000).numpy()
    assert np.abs(np.fft.rfft(played)).argmax() * RATE / 16_000 == pytest.approx(1_000 * speed, abs=3)


def play_alone(samples: torch.Tensor, offset: float, speed: float, frames: int) -> torch.Tensor:
    begin, length = torch.zeros(1, dtype=torch.long), torch.tensor([len(samples)])
    where = torch.tensor([offset], dtype=torch.float64), torch.tensor([speed], dtype=torch.float64)
    return play(samples, begin, length, *where, frames)[0]


def test_a_clip_placed_inside_a_segment_is_silent_around() -> None:
    played = play_alone(torch.full((100,), 32767, dtype=torch.int16), -50.0, 1.0, 300)
    assert not played[:50].any() and (played[60:140] > 0.99).all() and not played[150:].any()


def test_a_play_never_reads_another_clip() -> None:
    samples = torch.full((300,), 32767, dtype=torch.int16)
    samples[100:200] = 0
    begin, length = torch.tensor([100]), torch.tensor([100])
    for offset in (-150.0, -0.5, 0.0, 50.3, 98.9, 130.0):
        where = torch.tensor([offset], dtype=torch.float64), torch.tensor([1.1], dtype=torch.float64)
        assert not play(samples, begin, length, *where, 200).any(), offset


def test_filters_and_rooms_keep_the_sound_in_bounds() -> None:
    random = np.random.default_rng(0)
    curve = filter_curves(torch.from_numpy(filter_points(random))[None], 513, RATE)[0]
    assert curve.min() > 10 ** (-10.1 / 20) and curve.max() < 10 ** (10.1 / 20)
    click = torch.zeros(1, RATE)
    click[0, 100] = 1
    heard = in_rooms(click, rooms(1, RATE, random))[0]
    assert heard.shape == (RATE,) and heard[100] > 0.5 and heard[:100].abs().max() < 1e-3
    assert heard[5_000:10_000].square().sum() > heard[20_000:25_000].square().sum(), "reflections decay"


def test_a_flat_filter_changes_nothing() -> None:
    sound = torch.randn(2, 5_000)
    assert torch.allclose(equalise(sound, torch.zeros(2, FILTER_POINTS), RATE), sound, atol=1e-5)


def test_a_band_is_three_or_four_instruments_that_are_not_one_another() -> None:
    names = ("Piano", "Flute", "Snare drum", "Acoustic guitar", "Harp", "Dog", "Speech")
    listed = [
        Clip(f"{name}{group}", 0, RATE, (mid(name),), f"{name}/{group}", "effect", {})
        for name in names
        for group in (0, 1)
    ]
    sound = (3_000 * np.random.default_rng(0).standard_normal(RATE)).astype(np.int16)
    embeddings = np.ones((len(listed), 1, 8), np.float16)
    drawn = Mixer(Clips(sound, listed), embeddings, Recipe(mixtures=50, seconds=1.0, band=1.0, layered=0.0), STFT)
    plan = drawn.plan(0)
    sizes = np.bincount(plan.mixture_of_source)
    assert set(sizes) == {3, 4}
    for played in drawn.renderer.classes_of(plan):
        assert not played & {mid("Dog"), mid("Speech")}
        assert not any(are_related(one, other) for one in played for other in played if one != other)
    some = Mixer(Clips(sound, listed), embeddings, Recipe(mixtures=50, seconds=1.0, band=0.0), STFT)
    assert any(played & {mid("Dog"), mid("Speech")} for played in some.renderer.classes_of(some.plan(0)))


def song_mixer(**recipe: float) -> tuple[Mixer, list[Clip]]:
    """Two songs of three parts: noise at other levels each; and clips of none."""
    noise = np.random.default_rng(0).standard_normal((2, 4, 3 * RATE))
    levels = {"Piano": 4_000, "Bass guitar": 1_000, "Drum kit": 2_000, "Dog": 3_000}
    sounds, listed = [], []
    for song in range(2):
        for at, (name, level) in enumerate(levels.items()):
            sounds.append((level * noise[song, at]).astype(np.int16))
            where = f"song{song}" if name != "Dog" else ""
            start = 3 * RATE * (len(sounds) - 1)
            listed.append(Clip(f"{name}{song}", start, 3 * RATE, (mid(name),), f"{name}/{song}", "effect", {}, where))
    clips = Clips(np.concatenate(sounds), listed)
    chosen = Recipe(mixtures=20, seconds=1.0, absent=0.0, room=0.0, **recipe)  # type: ignore[arg-type]
    return Mixer(clips, np.ones((len(listed), 1, 8), np.float16), chosen, STFT), listed


def test_the_parts_of_a_song_begin_together_and_keep_their_levels() -> None:
    drawn, listed = song_mixer(songs=1.0, filtered=0.0)
    plan, batch = drawn.plan(0), drawn.batch(0)
    assert len(plan.clips) == len(plan.mixture_of_source) == len(plan.level_of) == len(plan.filters)
    for mixture in range(20):
        plays = [at for at, source in enumerate(plan.source_of_play) if plan.mixture_of_source[source] == mixture]
        assert len(plays) in (2, 3)
        for values in (
            [listed[plan.clips[at]].song for at in plays],
            [plan.offsets[at] for at in plays],
            [plan.speeds[at] for at in plays],
        ):
            assert len(set(values)) == 1
        assert listed[plan.clips[plays[0]]].song
    assert {listed[plan.clips[0]].mid for plan in (drawn.plan(step) for step in range(20))} == {
        mid(name) for name in ("Piano", "Bass guitar", "Drum kit")
    }, "any part is a target"
    # A piano is 12 dB louder than a bass in the song, and at most twice the spread more or less in a mixture.
    levels = batch.targets.abs().square().sum((1, 2)).log10() * 10
    for row in range(0, 40, 2):
        names = [listed[plan.clips[plan.target_sources[at][1]]].mid for at in (row, row + 1)]
        if names == [mid("Piano"), mid("Bass guitar")]:
            assert 5.5 < float(levels[row] - levels[row + 1]) < 18.5
    sums = batch.mixture.abs().square().sum((1, 2))
    assert bool((sums > 0.25).all() and (sums < 4).all()), "a song's parts have the energy of one source together"


def test_songs_change_no_mixture_of_a_recipe_without_them() -> None:
    some, none = song_mixer(songs=0.5)[0], song_mixer(songs=0.0)[0]
    kinds = {
        len(set(np.array(plan.level_of)[np.array(plan.mixture_of_source) == 0])) for plan in map(some.plan, range(12))
    }
    assert 1 in kinds and 2 in kinds, "some mixtures are songs, some are not"
    assert none.plan(0).level_of == list(range(len(none.plan(0).level_of)))


def test_songs_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="the recipe has songs, and no corpus has any"):
        mixer(small_corpus.clips(), songs=0.5)


def test_clips_of_songs_are_ordinary_clips_too() -> None:
    plan = song_mixer(songs=0.0)[0].plan(0)
    pairs = zip(plan.mixture_of_source, plan.offsets, strict=False)
    assert len({offset for _, offset in pairs}) > 5
    assert {at % 4 for at in plan.clips} == {0, 1, 2, 3}
