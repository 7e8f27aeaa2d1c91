"""Queries of classes by name, of clips and predicted, in a linear world whose class means are known."""

import csv
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.corpus.clips import Clip, Clips
from models.labels import classes
from models.networks.yamnet import Yamnet
from models.queries.plda import PLDAPrior, root
from models.runs import class_queries
from models.runs.class_queries import PREDICTION_GROUPS, predict_means

SOUNDS = 6  # classes of the world; class c sounds in the columns 100 c to 100 c + 99 of an embedding
MIDS = tuple(label.mid for label in classes()[:SOUNDS])


@cache
def encoder() -> Yamnet:
    """A query encoder that is sure of every sound of the world and hears none of its other classes."""
    network = Yamnet(list(range(521))).eval().requires_grad_(False)
    network.classes.weight.zero_()
    network.classes.bias.fill_(-30.0)
    for sound in range(SOUNDS):
        network.classes.weight[sound, 100 * sound : 100 * (sound + 1)] = 1.0
    return network


def sound_of(sound: int, random: np.random.Generator) -> Tensor:
    """An embedding of a sound alone: its logit is above 20, all others are -30."""
    embedding = torch.zeros(1024)
    embedding[100 * sound : 100 * (sound + 1)] = torch.from_numpy(random.uniform(0.6, 1.4, 100)).float()
    return embedding


def corpus(rows: list[tuple[str, str]]) -> Clips:
    """Clips with a mid and a group each, without samples."""
    listed = [Clip(str(at), 0, 0, (mid,), group, "effect", {}) for at, (mid, group) in enumerate(rows)]
    return Clips(np.zeros(0, np.int16), listed)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_prediction_is_the_mean_over_groups_of_the_clips_in_which_the_class_sounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    heard = random.integers(0, SOUNDS, 40)
    groups = [str(group) for group in random.integers(0, 12, 40)]
    embeddings = torch.stack([sound_of(int(sound), random) for sound in heard])
    predicted = predict_means(encoder(), embeddings, groups, {})
    assert len(predicted) == 521
    sizes = {group: groups.count(group) for group in groups}
    for sound in set(heard.tolist()):
        of_sound = [at for at in range(40) if heard[at] == sound]
        weights = torch.tensor([1 / sizes[groups[at]] for at in of_sound])
        wanted = (weights[:, None] * embeddings[of_sound]).sum(0) / weights.sum()
        torch.testing.assert_close(predicted[MIDS[sound]], wanted, atol=1e-4, rtol=1e-3)


def test_a_classes_own_clips_and_all_of_their_groups_do_not_count_for_its_prediction() -> None:
    random = np.random.default_rng(0)
    embeddings = torch.stack([sound_of(sound, random) for sound in (0, 0, 0, 1)])
    groups = ["own", "own", "another", "another"]
    predicted = predict_means(encoder(), embeddings, groups, {MIDS[0]: {"own"}, MIDS[1]: {"own", "another"}})
    torch.testing.assert_close(predicted[MIDS[0]], embeddings[2], atol=1e-4, rtol=1e-3)
    assert MIDS[1] not in predicted, "nothing is left to predict it from"


def test_a_clip_that_could_be_several_things_counts_for_each_of_them_less() -> None:
    random = np.random.default_rng(0)
    alone, other = sound_of(0, random), sound_of(0, random)
    both = other + sound_of(1, random)
    predicted = predict_means(encoder(), torch.stack([alone, both]), ["a", "b"], {})
    torch.testing.assert_close(predicted[MIDS[0]], (2 * alone + both) / 3, atol=1e-4, rtol=1e-3)


def test_a_class_with_clips_is_a_mean_of_them_and_of_the_prediction() -> None:
    """Three classes: 0 has two groups, 1 has one, 2 has none but sounds in a clip of each."""
    random = np.random.default_rng(0)
    rows = [(MIDS[0], "a"), (MIDS[0], "a"), (MIDS[0], "b"), (MIDS[1], "c"), (MIDS[1], "d")]
    sounds = torch.stack([sound_of(sound, random) for sound in (0, 0, 2, 1, 0)])
    embeddings = sounds[:, None].expand(-1, 4, -1).numpy().astype(np.float16)
    embeddings[3] = 0  # a silent clip
    made = class_queries.class_queries(encoder(), embeddings, corpus(rows), None)
    assert len(made) == 521
    assert [made[mid].groups for mid in MIDS] == [2, 1, 0, 0, 0, 0]
    own = (sounds[:2].mean(0) + sounds[2]) / 2
    wanted = (2 * own + PREDICTION_GROUPS * sounds[4]) / (2 + PREDICTION_GROUPS)
    torch.testing.assert_close(made[MIDS[0]].vector, wanted, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(made[MIDS[2]].vector, sounds[2], atol=1e-2, rtol=1e-2)
    assert made[MIDS[0]].likeness is not None and made[MIDS[2]].likeness is None


def test_the_prior_corrects_every_class() -> None:
    random = np.random.default_rng(0)
    sounds = torch.stack([sound_of(sound, random) for sound in (0, 1)])
    embeddings = sounds[:, None].expand(-1, 4, -1).numpy().astype(np.float16)
    clips = corpus([(MIDS[0], "a"), (MIDS[1], "b")])
    half = PLDAPrior(torch.ones(1024), torch.eye(1024)[:, :1], torch.eye(1024)[:, :1], torch.tensor([0.5, 0.5]))
    plain = class_queries.class_queries(encoder(), embeddings, clips, None)
    corrected = class_queries.class_queries(encoder(), embeddings, clips, half)
    for mid, query in plain.items():
        torch.testing.assert_close(root(corrected[mid].vector), (root(query.vector) + 1) / 2)


def test_an_encoder_without_a_linear_classifier_knows_classes_by_clips_alone() -> None:
    random = np.random.default_rng(0)
    sounds = torch.stack([sound_of(sound, random) for sound in (0, 0, 1)])
    embeddings = sounds[:, None].expand(-1, 4, -1).numpy().astype(np.float16)
    clips = corpus([(MIDS[0], "a"), (MIDS[0], "b"), (MIDS[1], "b")])
    made = class_queries.class_queries(object(), embeddings, clips, None)
    assert made.keys() == set(MIDS[:2])
    torch.testing.assert_close(made[MIDS[0]].vector, sounds[:2].mean(0), atol=1e-3, rtol=1e-3)


def test_the_table_lists_every_class(tmp_path: Path) -> None:
    vector = torch.zeros(4)
    class_queries.write(
        {
            MIDS[1]: class_queries.ClassQuery(vector, 3, 0.614),
            MIDS[0]: class_queries.ClassQuery(vector, 0, None),
        },
        tmp_path / "classes.csv",
    )
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = {row.pop("label"): row for row in csv.DictReader(file)}
    assert rows == {
        classes()[1].name: {"mid": MIDS[1], "source": "clips", "groups": "3", "prediction_likeness": "0.61"},
        classes()[0].name: {"mid": MIDS[0], "source": "predicted", "groups": "0", "prediction_likeness": ""},
    }
