"""Training: what reaches a batch, what the loss says, that a run learns and goes on where it stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.corpus.clips import Clip, Clips
from models.corpus.decoded import load
from models.corpus.relations import ancestors, related, siblings
from models.evaluation import mixtures
from models.evaluation.metrics import attenuation, sdr, si_sdr
from models.evaluation.separation import area_under_curve
from models.labels import find
from models.networks.yamnet import Yamnet
from models.training.losses import separation_loss
from models.training.mixing import Mixer, Recipe
from models.training.separator import Schedule, Trainer
from models.training.variety import at_speed, filter_curve, in_room

RATE = 32_000
SMALL = {"bands": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1, 1), "code": 16, "recurrent": 16}


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Four classes that a network can tell apart: tones of three registers, and noise; three groups each."""
    random = np.random.default_rng(0)
    times = np.arange(RATE) / RATE
    samples, listed = [], []
    for label, frequency in (("Dog", 300), ("Siren", 2_500), ("Bell", 9_000), ("Wind", None)):
        for group in range(3):
            if frequency is None:
                sound = random.standard_normal(RATE) * 0.1
            else:
                sound = 0.3 * np.sin(2 * np.pi * frequency * (1 + 0.05 * group) * times)
            start = sum(map(len, samples))
            listed.append(Clip(f"{label}{group}", start, RATE, (find(label).mid,), f"{label}/{group}", "effect", {}))
            samples.append((sound * 32767).astype(np.int16))
    return Clips(np.concatenate(samples), listed)


@pytest.fixture(scope="module")
def embeddings(clips: Clips) -> np.ndarray:
    """One direction a class, as an ear that knows them would answer."""
    random = np.random.default_rng(1)
    places = sorted({clip.mid for clip in clips.clips})
    directions = random.random((len(places), 1024)).astype(np.float16)
    return np.stack([directions[[places.index(clip.mid)] * 2] for clip in clips.clips])


def mixer(clips: Clips, embeddings: np.ndarray, seed: int = 0, **recipe: float) -> Mixer:
    return Mixer(clips, embeddings, Recipe(mixtures=4, seconds=1.0, **recipe), (1024, 320, 800), seed)  # type: ignore[arg-type]


def test_relations_know_the_graph_and_what_ensembles_hold() -> None:
    dog, bark, animal = (find(name).mid for name in ("Dog", "Bark", "Animal"))
    music, piano, singing, kit, snare = (find(n).mid for n in ("Music", "Piano", "Singing", "Drum kit", "Snare drum"))
    assert animal in ancestors(bark)
    assert related(dog, bark) and related(bark, animal) and related(dog, dog)
    assert related(music, piano) and related(music, singing) and related(singing, music) and related(kit, snare)
    assert not related(dog, piano) and not related(piano, snare)
    assert siblings(find("Trumpet").mid, find("Trombone").mid) and not siblings(dog, piano)


def test_mixtures_are_the_sum_of_what_can_be_asked_for(clips: Clips, embeddings: np.ndarray) -> None:
    batch = mixer(clips, embeddings, third_source=0.0, single_source=0.0, absent=0.0).batch()
    both = batch.targets.unflatten(0, (-1, 2)).sum(1)
    assert torch.allclose(both, batch.mixture, atol=1e-4 * batch.mixture.abs().max().item())


def test_a_batch_is_the_same_for_the_same_seed(clips: Clips, embeddings: np.ndarray) -> None:
    first, second, other = (mixer(clips, embeddings, seed).batch() for seed in (3, 3, 4))
    assert torch.equal(first.mixture, second.mixture) and torch.equal(first.queries, second.queries)
    assert not torch.equal(first.mixture, other.mixture)


def test_absent_queries_have_silent_targets(clips: Clips, embeddings: np.ndarray) -> None:
    batch = mixer(clips, embeddings, absent=1.0, third_source=0.0).batch()
    silent = batch.targets.abs().sum((1, 2)) == 0
    assert silent.tolist() == [False, True] * 4


def test_queries_come_from_other_groups_when_told_so(clips: Clips, embeddings: np.ndarray) -> None:
    marked = embeddings.copy()
    for index, clip in enumerate(clips.clips):
        marked[index] = index + 1  # the query now says which clip it was made from
        assert clip.group.endswith(str(index % 3))
    drawn = mixer(clips, marked, other_group=1.0)
    for _ in range(20):
        index = int(drawn.random.integers(len(clips.clips)))
        query = drawn._query(index, clips.clips[index].mid, own=True).max()
        assert query != index + 1


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_speed_moves_the_pitch(speed: float) -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(RATE) / RATE)
    played = at_speed(tone, 0, 16_000, speed)
    peak = np.abs(np.fft.rfft(played)).argmax() * RATE / 16_000
    assert peak == pytest.approx(1_000 * speed, abs=3)


def test_a_clip_placed_inside_a_segment_is_silent_around() -> None:
    played = at_speed(np.ones(100), -50, 300, 1.0)
    assert not played[:50].any() and played[60:140].all() and not played[150:].any()


def test_filters_and_rooms_keep_the_sound_in_bounds() -> None:
    random = np.random.default_rng(0)
    curve = filter_curve(513, RATE, random)
    assert curve.min() > 10 ** (-10.1 / 20) and curve.max() < 10 ** (10.1 / 20)
    click = np.zeros(RATE, np.float32)
    click[100] = 1
    heard = in_room(click, RATE, random)
    assert heard.shape == click.shape and heard[100] > 0.5 and np.abs(heard[:100]).max() < 1e-3
    assert np.square(heard[5_000:10_000]).sum() > np.square(heard[20_000:25_000]).sum(), "reflections decay"


def test_the_loss_is_a_soft_snr_and_rewards_silence_where_nothing_is_there() -> None:
    target = torch.randn(1, 10, 20, dtype=torch.complex64)
    mixture = 2 * target  # so that a mask of a half is right
    silence = torch.zeros_like(target)
    for level, wanted, there in [(0.5, -30, True), (0.0, 0, True), (1.0, 0, True), (0.0, -20, False), (1.0, 0, False)]:
        mask = torch.full((1, 10, 20), level)
        loss = separation_loss(mask, target if there else silence, mixture).item()
        assert loss == pytest.approx(wanted, abs=0.1), (level, there)


@given(seed=st.integers(0, 2**31))
def test_the_loss_is_that_of_the_complex_spectra(seed: int) -> None:
    torch.manual_seed(seed)
    target, other = torch.randn(2, 3, 10, 20, dtype=torch.complex64)
    mask = torch.rand(3, 10, 20)
    error = (mask * (target + other) - target).abs().square().sum((1, 2))
    energy = target.abs().square().sum((1, 2))
    plainly = (10 * torch.log10((error + 1e-3 * energy) / energy)).mean()
    assert torch.allclose(separation_loss(mask, target, target + other), plainly, atol=1e-4)


def test_a_run_learns_and_goes_on_where_it_stopped(clips: Clips, embeddings: np.ndarray, tmp_path: Path) -> None:
    ear = Yamnet(list(range(521))).eval().requires_grad_(False)
    rows = list(mixtures.render(mixtures.draw(clips, 8), clips))
    recipe = Recipe(mixtures=4, seconds=1.0, third_source=0.0, absent=0.1, filtered=0.0, room=0.0)
    schedule = Schedule(minutes=0.15, warmup_steps=10, ema=0.9, validate_minutes=0.05, checkpoint_minutes=0.02)
    first = Trainer(ear, tmp_path, schedule, SMALL)
    first.run(clips, embeddings, recipe, rows)
    losses = [row["loss"] for row in first.state.rows]
    assert losses[-1] < losses[0], losses
    assert losses[-1] < -4
    assert first.state.skipped == 0

    second = Trainer(ear, tmp_path, Schedule(minutes=0.17, warmup_steps=10, ema=0.9), SMALL)
    assert second.state.step == first.state.step
    resumed = second.model.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in first.model.state_dict().items())
    second.run(clips, embeddings, recipe, rows)
    assert second.state.step > first.state.step


def test_the_validation_list_is_what_it_says(shared: Path) -> None:
    folder = shared / "corpus"
    rows = mixtures.read()
    assert len(rows) == 300
    listed = {key for row in rows for key in (row.target, row.interference, row.query, row.absent)}
    import json
    import tarfile

    with tarfile.open(folder / "valid-000.tar") as tar:
        described = {
            member.name.split(".")[0]: json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
            for member in tar
            if member.name.endswith(".json") and member.name.split(".")[0] in listed
        }
    assert set(described) == listed
    for row in rows:
        target, interference, query, absent = (
            described[key] for key in (row.target, row.interference, row.query, row.absent)
        )
        assert target["mids"] == query["mids"] and target["group"] != query["group"]
        assert not related(target["mids"][0], interference["mids"][0])
        assert not any(related(absent["mids"][0], other["mids"][0]) for other in (target, interference))


def test_shards_are_decoded_once(shared: Path, tmp_path: Path) -> None:
    import tarfile

    small = tmp_path / "valid-000.tar"
    with tarfile.open(shared / "corpus" / "valid-000.tar") as whole, tarfile.open(small, "w") as part:
        for _, member in zip(range(8), whole, strict=False):
            part.addfile(member, whole.extractfile(member))
    decoded = load(tmp_path, "valid", tmp_path / "cache")
    assert len(decoded.clips) == 4
    assert all(np.abs(decoded.waveform(clip)).max() > 0.01 for clip in decoded.clips)
    assert len(load(tmp_path / "nowhere", "valid", tmp_path / "cache").clips) == 4, "the second time needs no shards"
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere", "valid", tmp_path / "elsewhere")


def test_measures() -> None:
    target, noise = torch.randn(4, 1_000), torch.randn(4, 1_000)
    noise -= (noise * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    noise *= (target.square().sum(1) / noise.square().sum(1)).sqrt()[:, None]
    estimate = target + 0.1 * noise
    assert torch.allclose(si_sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(si_sdr(3 * estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(0.5 * target, target), torch.full((4,), 6.02), atol=1e-2)
    assert torch.allclose(attenuation(0.1 * target, target), torch.full((4,), 20.0), atol=1e-3)
    assert area_under_curve(torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([1, 1, 0, 0])) == 0.75
