"""What training costs does not grow with the corpus: two million clips in a soak run, a hundredth of them otherwise.

`python -m tests.models.large_corpus` prints the figures that the model card has.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.corpus.clips import RATE, Clip, Clips, energies_of
from models.labels import classes
from models.training import detector
from models.training.mixing import Mixer
from tests.models import large_corpus

CLIPS = 2_000_000 if os.environ.get("EARMARK_SOAK") else 20_000


def measure(folder: Path) -> dict[str, Any]:
    """Return the figures of another process."""
    command = [sys.executable, "-m", "tests.models.large_corpus", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return json.loads(ran.stdout)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_corpus_as_large_as_audioset_fits_in_memory_and_resumes_exactly(tmp_path: Path) -> None:
    large_corpus.make(tmp_path / "corpus", CLIPS)
    assert (tmp_path / "corpus" / "samples.int16").stat().st_blocks < 1000, "the file is sparse"
    found = measure(tmp_path / "corpus")
    print(json.dumps(found))
    assert found["clips"] == CLIPS
    assert found["peak_mebibytes"] < min(16 << 10, 1500 + CLIPS * 7 // 1000)
    clips = large_corpus.open_folder(tmp_path / "corpus")
    assert clips.samples.nbytes == 2 * CLIPS * 10 * RATE, "nothing of it was read"
    # Another process plans the same batch, with nothing but the step's number.
    mixer = Mixer(clips, None, detector.PAPER_RECIPE, (1024, 320, 1024))
    assert large_corpus.digest(mixer.plan(large_corpus.BATCHES)) == found["detector_plan"]
    assert large_corpus.digest(mixer.plan(0)) != found["detector_plan"]


def test_classes_are_drawn_evenly_however_uneven_the_corpus_is() -> None:
    """As published: the class first, then one of its clips. Here the first class has 2900 clips, the last ones 5."""
    mids = [label.mid for label in classes()]
    shares = 1 / np.arange(1, len(mids) + 1)
    counts = np.ceil(20_000 * shares / shares.sum()).astype(int)
    labels = np.repeat(np.arange(len(mids)), counts).tolist()
    clips = [Clip(str(at), 0, RATE, (mids[label],), str(at), "effect", {}) for at, label in enumerate(labels)]
    mixer = Mixer(Clips(np.ones(RATE, np.int16), clips), None, detector.PAPER_RECIPE, (1024, 320, 1024))
    drawn = [index for step in range(500) for index in mixer.plan(step).clips]
    expected = len(drawn) / len(mids)
    found = Counter(labels[index] for index in drawn)
    deviation = sum((found[place] - expected) ** 2 / expected for place in range(len(mids)))
    assert deviation / len(mids) < 1.25, "as uneven as even draws are by chance"
    of_first = Counter(index for index in drawn if labels[index] == 0)
    assert max(of_first.values()) <= 3, "of its 2900 clips none is preferred"


@pytest.mark.parametrize("frames", [1, 1599, 1600, 1601, 40_000])
def test_energies_are_of_every_step_of_a_clip(frames: int) -> None:
    samples = np.random.default_rng(frames).integers(-9000, 9000, frames).astype(np.int16)
    found = energies_of(samples)
    exact = [8 * np.square(samples[at : at + 1600 : 8] / 32768).sum() for at in range(0, frames, 1600)]
    np.testing.assert_allclose(found, exact, rtol=1e-5)
