import numpy as np
import pytest
import torch

from models.corpus.clips import Clip, Clips
from models.queries.plda import PLDAPrior, root
from models.queries.profiles import Profiles
from models.runs import plda_fit
from models.runs.clip_embeddings import keep_share

SIZE, CLASSES, GROUPS = 24, 30, 6
RANDOM = np.random.default_rng(7)
SPREAD = np.linspace(2.0, 0.1, SIZE)  # of a class's sounds: its first features say little about the class
MEANS = RANDOM.normal(0, 0.5, (CLASSES, SIZE))
SEEN = 20  # classes that the prior is fitted on


def sounds(mid: int, count: int, seed: int) -> np.ndarray:
    """Embeddings (count, SIZE) of a class's sounds."""
    drawn = MEANS[mid] + SPREAD * np.random.default_rng([seed, mid]).normal(size=(count, SIZE))
    return np.sign(drawn) * drawn**2


@pytest.fixture(scope="module")
def prior() -> PLDAPrior:
    clips, embeddings = [], []
    for mid in range(SEEN):
        for group, embedding in enumerate(sounds(mid, GROUPS, 0)):
            clips.append(Clip(f"{mid}-{group}", 0, 1, (f"/m/{mid}",), f"{mid}-{group}", "sound", {}))
            embeddings.append(embedding)
    fitted = plda_fit.fit(np.array(embeddings, np.float32)[:, None], Clips(np.zeros(1, np.int16), clips))
    assert fitted is not None
    return fitted


@pytest.mark.parametrize(
    ("classes", "share"), [(range(SEEN), 0.6), (range(SEEN, CLASSES), 0.75)], ids=["seen", "unseen"]
)
def test_one_example_and_the_prior_come_nearer_to_the_class_than_the_example(prior, classes, share):
    before, after = 0.0, 0.0
    for mid in classes:
        examples = torch.tensor(sounds(mid, 20, 1), dtype=torch.float32)
        mean = torch.tensor(MEANS[mid], dtype=torch.float32)
        before += (root(examples) - mean).square().sum().item()
        after += (root(prior.posterior_mean(examples)) - mean).square().sum().item()
    assert after < share * before


def test_the_prior_is_the_formula(prior):
    example = torch.tensor(sounds(25, 1, 2)[0], dtype=torch.float32)
    patterns, directions = prior.patterns.double(), prior.directions.double()
    # All directions are kept here, so that W = P P.T and B = P ratios P.T.
    within = patterns @ patterns.T
    ratios = (prior.gains[:-1] / (1 - prior.gains[:-1])).double()
    between = patterns @ torch.diag(ratios) @ patterns.T
    assert torch.allclose(directions.T @ within @ directions, torch.eye(SIZE, dtype=torch.float64), atol=1e-4)
    offset = root(example).double() - prior.centre
    expected = prior.centre + between @ torch.linalg.inv(between + within) @ offset
    torch.testing.assert_close(root(prior.posterior_mean(example)).double(), expected, rtol=1e-3, atol=1e-3)


def test_profiles_tell_classes_that_embeddings_do_not(prior):
    classes = {f"/m/{mid}": torch.tensor(sounds(mid, 50, 3).mean(0), dtype=torch.float32) for mid in range(SEEN)}
    profiles = Profiles(prior, classes)

    def area(of) -> float:
        """Share of pairs of one class that are more alike than a pair of two classes."""
        first, second = (
            of(torch.tensor(np.stack([sounds(mid, 1, seed)[0] for mid in range(SEEN)]), dtype=torch.float32))
            for seed in (4, 5)
        )
        alike = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
        others = alike[~torch.eye(SEEN, dtype=torch.bool)]
        return (alike.diagonal()[:, None] > others).float().mean().item()

    assert area(profiles) > max(0.9, area(lambda embeddings: embeddings))
    assert profiles(torch.zeros(3, 2, SIZE)).shape == (3, 2, SEEN)


def test_without_a_prior_or_classes_a_profile_is_the_embedding(prior):
    embeddings = torch.rand(2, SIZE)
    assert Profiles(None, {"/m/0": torch.rand(SIZE)})(embeddings) is embeddings
    assert Profiles(prior, {})(embeddings) is embeddings


def test_classes_of_one_group_tell_nothing():
    clips = [Clip(f"{at}", 0, 1, (f"/m/{at}",), f"{at}", "sound", {}) for at in range(3)]
    assert plda_fit.fit(np.ones((3, 1, SIZE), np.float32), Clips(np.zeros(1, np.int16), clips)) is None


def test_an_encoder_that_tells_nothing_apart_gives_no_prior():
    clips = [Clip(f"{at}", 0, 1, (f"/m/{at % 2}",), f"{at}", "sound", {}) for at in range(12)]
    equal = np.full((12, 4, SIZE), 0.1, np.float32)
    assert plda_fit.fit(equal, Clips(np.zeros(1, np.int16), clips)) is None


def test_parts_that_do_not_fit_are_refused(prior):
    with pytest.raises(ValueError, match="do not match"):
        PLDAPrior.of(prior.state() | {"centre": torch.zeros(3)})
    with pytest.raises(TypeError):
        PLDAPrior.of({"centre": torch.zeros(3)})
    stored = {name: part.half() for name, part in prior.state().items()}
    example = torch.tensor(sounds(1, 1, 6), dtype=torch.float32)
    torch.testing.assert_close(
        PLDAPrior.of(stored).posterior_mean(example), prior.posterior_mean(example), rtol=0.02, atol=0.02
    )


def test_a_share_of_the_groups_is_a_part_of_a_larger_share():
    clips = Clips(
        np.zeros(1, np.int16), [Clip(f"{at}", 0, 1, ("/m/0",), f"g{at // 2}", "sound", {}) for at in range(400)]
    )
    embeddings = np.ones((400, 1, 2), np.float16)
    small, large, all_of_them = (keep_share(embeddings, clips, share)[:, 0, 0] > 0 for share in (0.25, 0.5, 1.0))
    assert 0.15 < small.mean() < 0.35
    assert 0.4 < large.mean() < 0.6
    assert not (small & ~large).any()
    assert all_of_them.all()
    assert (small[::2] == small[1::2]).all(), "a group is there or not"
