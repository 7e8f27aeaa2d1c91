"""Anchors, and the paper's recipe for separators."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.corpus.clips import RATE, Clip, Clips
from models.labels import classes
from models.networks import DetectorOutput
from models.networks.htsat import HTSAT
from models.networks.unet import HyperParameters as UNetSizes
from models.training import anchors, paper
from tests.models import small_corpus
from tests.models.small_detector import DETECTOR

UNET = UNetSizes(fft_size=256, hop=64, channels=(4, 8), query_size=16)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("loud", "expected"), [((3.0, 5.0), 3.0), ((0.0, 0.5), 0.0), ((9.5, 10.0), 8.0)])
def test_anchors_lie_where_the_curve_is_high(loud: tuple[float, float], expected: float) -> None:
    curve = np.full(500, 0.01)
    curve[int(loud[0] / 0.02) : int(loud[1] / 0.02)] = 1
    start = anchors.loudest_stretch(curve, 0.02, 2 * RATE, 10 * RATE)
    assert start / RATE == pytest.approx(expected, abs=0.75)
    held = curve[int(start / RATE / 0.02) : int((start / RATE + 2) / 0.02)]
    assert held.sum() == pytest.approx(curve.sum() - 0.01 * (500 - len(held)), rel=0.02), "all of the sound is in it"


def test_anchors_are_found_once_for_a_detector_and_its_clips(tmp_path: Path) -> None:
    from tests.models.bands import BandDetector

    class Counting(BandDetector):
        heard = 0

        def forward(self, waveforms: torch.Tensor) -> DetectorOutput:
            self.heard += 1
            return super().forward(waveforms)

    detector, clips = Counting(), small_corpus.clips()
    found = [anchors.load(detector, clips, tmp_path, seconds) for seconds in (0.5, 0.5, 0.25)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert detector.heard == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_flat_curve_is_cut_in_the_middle() -> None:
    assert anchors.loudest_stretch(np.ones(500), 0.02, 2 * RATE, 10 * RATE) / RATE == pytest.approx(4, abs=0.5)


def test_anchors_find_the_sound_that_the_detector_detects() -> None:
    """Silence, then the tone: the band detector's curve of its class follows the sound."""
    from tests.models.bands import BandDetector

    samples = np.zeros(5 * RATE, np.int16)
    samples[3 * RATE : 4 * RATE] = 20_000 * np.sin(2 * np.pi * 250 * np.arange(RATE) / RATE)
    mid = classes()[0].mid
    detector = BandDetector()
    found = anchors.mine(detector, Clips(samples, [Clip("a", 0, 5 * RATE, (mid,), "a", "effect", {})]), 1.0)
    assert found[0] / RATE == pytest.approx(3, abs=0.3)


def test_pairs_have_equal_energy_and_come_from_different_classes() -> None:
    clips = small_corpus.clips()
    drawn = paper.PairMixer(clips, np.zeros(len(clips.clips), int), 16)
    pairs = drawn.batch(0)
    energy = pairs.sources.square().sum(1).unflatten(0, (-1, 2))
    assert torch.allclose(energy[:, 0], energy[:, 1], rtol=1e-3)
    classes_of = drawn.mixer.renderer.classes_of(drawn.mixer.plan(0))
    assert all(len(mids) == 2 for mids in classes_of)
    halves = torch.cat([drawn.batch(0, part, 2).sources for part in range(2)])
    assert torch.allclose(halves, pairs.sources, atol=1e-6)


def test_the_papers_separator_learns() -> None:
    torch.manual_seed(0)

    detector = HTSAT(DETECTOR).eval().requires_grad_(False)
    learner = paper.PaperLearner(detector, UNET)
    clips = small_corpus.clips()
    batch = paper.Pairs(paper.PairMixer(clips, np.zeros(len(clips.clips), int), 2).batch(0).sources[:, :16_000])
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3, amsgrad=True)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = learner(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    with pytest.raises(ValueError, match="queries of 8 values"):
        paper.PaperLearner(detector, replace(UNET, query_size=8))
