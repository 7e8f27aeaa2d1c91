"""`evaluate heard`: mixtures of sounds that a model was trained on, beside those it was not."""

from pathlib import Path

import numpy as np
import pytest

from models.__main__ import main
from models.corpus.relations import are_related
from models.experiments.heard import Drawing
from models.labels import find
from tests.models import small_corpus, tones

pytestmark = pytest.mark.usefixtures("one_thread")


def test_cases_are_unrelated_sounds_at_equal_energy_with_an_example_of_another_group() -> None:
    clips = small_corpus.clips()
    waveforms = {clip.group: clips.waveform(clip) for clip in clips.clips}
    cases = Drawing(clips, 1).cases((), (), 60)
    assert len(cases) == 60 and {case.label for case in cases} == {name for name, _ in small_corpus.CLASSES}
    for case in cases:
        target, others = case.mix.target, case.mix.interference
        np.testing.assert_allclose(np.square(target).sum(), np.square(others).sum(), rtol=1e-4)
        np.testing.assert_array_equal(case.mix.mixture, target + others)
        (asked,) = (group for group, sound in waveforms.items() if np.array_equal(sound, case.example))
        assert asked != case.group and asked.startswith(f"{case.label}/")


def test_scenes_name_their_targets_and_what_they_are_heard_in() -> None:
    drawing = Drawing(small_corpus.clips(), 1)
    cases = drawing.cases(("Animal",), ("Wind",), 3)
    assert {case.label for case in cases} == {"Dog"}
    assert drawing.cases(("Wind",), ("Wind",), 3) == [], "no class is unrelated to itself"
    assert are_related(find("Dog").mid, find("Animal").mid)


def test_the_command_tells_both_kinds_of_sounds_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tones.write(tmp_path, 0.7)
    cache = str(tmp_path / "cache")
    assert main(["evaluate", "heard", "--corpus", str(tmp_path), "--cache", cache, "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "SI-SDR improvement" in printed and "trained on" in printed and "never heard" in printed
