"""Training of detectors: targets, augmentation, and what they learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models.corpus.clips import RATE
from models.corpus.decoded import load_source
from models.corpus.sources.unlabelled import Unlabelled
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.labels import classes, find
from models.networks.htsat import HTSAT, HyperParameters
from models.networks.yamnet import Yamnet
from models.spectrum import stft
from models.training.detector import (
    DetectorLearner,
    LabelTargets,
    Lessons,
    Teacher,
    blend_with_reversed,
    mask_stripes,
    over_patches,
)
from models.training.mixing import UNLABELLED, Mixer
from models.training.recipe import Recipe
from tests.models import small_corpus
from tests.models.small_detector import DETECTOR

LIKE_THE_PAPERS = HyperParameters(frames=128, runs=4, channels=8, depths=(1, 2), heads=(2, 2), window=4, level=0.08)

pytestmark = pytest.mark.usefixtures("one_thread")


def column(name: str) -> int:
    return [label.name for label in classes()].index(name)


def test_targets_hold_what_is_implied_and_leave_out_what_is_unknown() -> None:
    labelled = [frozenset({find("Dog").mid}), frozenset({find("Bark").mid, find("Speech").mid})]
    wanted, known = LabelTargets()(labelled, torch.device("cpu"))
    for name, there, told in [("Dog", 1, True), ("Animal", 1, True), ("Bark", 0, False), ("Cat", 0, True)]:
        assert (wanted[0, column(name)], known[0, column(name)]) == (there, told), name
    assert wanted[1, [column("Bark"), column("Dog"), column("Speech"), column("Animal")]].tolist() == [1, 1, 1, 1]
    assert known[1, column("Bark")] and not known[1, column("Conversation")]


def test_of_a_mixture_with_an_unlabelled_part_only_its_labels_are_known() -> None:
    wanted, known = LabelTargets()([frozenset({UNLABELLED, find("Dog").mid})], torch.device("cpu"))
    assert wanted[0, [column("Dog"), column("Animal")]].tolist() == [1, 1]
    assert known.sum() == wanted.sum()


def test_unlabelled_audio_is_used_with_the_teacher_and_at_most_once_in_a_mixture(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "more" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).standard_normal(RATE) * 0.1, RATE)
    more = load_source(Unlabelled(tmp_path / "more"), tmp_path / "cache", workers=1)
    assert [clip.mids for clip in more.clips] == [()] * 3
    joined = small_corpus.clips().join(more)
    assert np.array_equal(joined.waveform(joined.clips[-1]), more.waveform(more.clips[-1]))
    drawn = Mixer(joined, None, Recipe(mixtures=50, queries=0, single_source=0.0, third_source=0.5), (1024, 320, 800))
    plan = drawn.plan(0)
    counts = [0] * 50
    for play, source in enumerate(plan.source_of_play):
        counts[plan.mixture_of_source[source]] += not joined.clips[plan.clips[play]].mids
    classes_of = drawn.renderer.classes_of(plan)
    with_some = [UNLABELLED in mids for mids in classes_of]
    assert 10 < sum(with_some) < 40
    assert all(bool(count) == some for count, some in zip(counts, with_some, strict=True))


def test_stripes_hide_stretches_of_frames_and_of_bands_and_nothing_else() -> None:
    torch.manual_seed(0)
    bands = torch.ones(64, 200, 64)
    masked = mask_stripes(bands, 2, (64, 8))
    hidden = masked == 0
    frames, rows = hidden.all(2), hidden.all(1)
    assert (hidden == (frames[:, :, None] | rows[:, None])).all(), "whole frames or whole bands"
    assert frames.sum(1).max() <= 128 and rows.sum(1).max() <= 16
    assert 30 < frames.sum(1).float().mean() < 80 and 3 < rows.sum(1).float().mean() < 10
    assert torch.equal(mask_stripes(bands, 0, (64, 8)), bands)


def test_blending_mixes_a_batch_with_its_reverse() -> None:
    rows = torch.arange(4.0)[:, None]
    assert blend_with_reversed(rows, torch.full((4, 1), 0.75)).flatten().tolist() == [0.75, 1.25, 1.75, 2.25]


def small_batches(queries: int = 0) -> Mixer:
    clips = small_corpus.clips()
    recipe = Recipe(
        mixtures=8, queries=queries, third_source=0.0, single_source=1.0, filtered=0.0, room=0.0, seconds=0.96
    )
    return Mixer(clips, small_corpus.embeddings(clips), recipe, (1024, 320, 800))


def train_and_compare(learner: DetectorLearner, steps: int = 40) -> tuple[float, float]:
    """The loss before and after."""
    drawn = small_batches()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    learner.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = learner(drawn.batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[:5]) / 5, sum(losses[-5:]) / 5


@pytest.mark.parametrize("hyper", [DETECTOR, LIKE_THE_PAPERS], ids=["small", "like the paper's"])
def test_a_detector_learns_from_clip_level_labels(hyper: HyperParameters) -> None:
    torch.manual_seed(0)
    learner = DetectorLearner(hyper, Lessons(mixup=0.0, stripes=0, drop_path=0.0))
    before, after = train_and_compare(learner)
    assert after < 0.5 * before, (before, after)
    clips, detector = small_corpus.clips(), learner.network.eval()
    with torch.inference_mode():
        answers = detector(torch.stack([torch.from_numpy(clips.waveform(clip)) for clip in clips.clips])).clipwise
    places = [find(name).index for name, _ in small_corpus.CLASSES]
    right = answers[:, places].argmax(1) == torch.arange(4).repeat_interleave(small_corpus.GROUPS)
    assert right.float().mean() > 0.8


def test_a_trained_detector_hears_every_clip_at_the_level_of_its_training() -> None:
    """Tagging, anchors, the timeline and queries give it clips as they are; its mixtures had no level of their own."""
    torch.manual_seed(0)
    detector = HTSAT(DETECTOR).eval()
    clips = small_corpus.clips()
    sounds = torch.stack([torch.from_numpy(clips.waveform(clip)) for clip in clips.clips[:3]])
    levels = torch.tensor([0.02, 1.0, 30.0])[:, None]
    with torch.inference_mode():
        for part, other in zip(detector(sounds), detector(sounds * levels), strict=True):
            torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(detector.embed(sounds), detector.embed(levels * sounds), rtol=1e-3, atol=1e-4)
        # A mixture of a batch, of whatever energy, is heard as the clip of the same sound.
        spectra = stft(sounds, 1024, 320, 800).abs() / levels[:, :, None]
        torch.testing.assert_close(
            detector.bands_of(detector.at_level(spectra)), detector.log_bands(sounds), rtol=1e-3, atol=1e-3
        )
        raw = HTSAT(replace(DETECTOR, level=None)).eval()
        raw.load_state_dict(detector.state_dict())
        assert not torch.allclose(raw(sounds[:1]).embedding, raw(0.02 * sounds[:1]).embedding, atol=1e-2), (
            "the authors'"
        )
    tagged = DetectorUnderTest("it", detector, "cpu")
    waveform = clips.waveform(clips.clips[0])
    np.testing.assert_allclose(tagged.clipwise(waveform, RATE), tagged.clipwise(0.02 * waveform, RATE), atol=1e-4)
    with pytest.raises(ValueError, match="have no level"):
        DetectorLearner(replace(DETECTOR, level=None))


def test_a_student_comes_nearer_to_its_teacher() -> None:
    torch.manual_seed(0)
    clips = small_corpus.clips()
    detector = Yamnet(list(range(521))).eval().requires_grad_(False)
    teacher = Teacher(detector, small_corpus.embeddings(clips)[:, 0])
    # Nothing but the teacher is learned from: neither labels nor masks.
    learner = DetectorLearner(DETECTOR, Lessons(labels=0.0, stripes=0, drop_path=0.0), teacher)
    before, after = train_and_compare(learner, 15)
    assert after < 0.8 * before, (before, after)
    assert not any(name.startswith("teacher") for name, _ in learner.named_parameters())


def test_patches_are_means_of_three_columns() -> None:
    columns = torch.arange(5.0)[None, :, None]
    assert over_patches(columns).flatten().tolist() == [1, 2, 3]
