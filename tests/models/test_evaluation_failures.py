"""Where a model fails, on tones whose likeness and overlap are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.corpus.clips import Clips
from models.evaluation import failures, failures_report, mixture_figures, reporting_mixtures
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reports import comparison
from models.evaluation.reports.comparison import Figures
from models.evaluation.reports.summaries import Summary
from models.spectrum import mel_bands
from models.validation.rendering import Sounds
from tests.models import tones
from tests.models.bands import BANDS, bundle
from tests.models.test_evaluation_mixture_figures import deaf

ROWS = 16


@pytest.fixture(scope="module")
def clips() -> Clips:
    return tones.corpus()


@pytest.fixture(scope="module")
def mixture_rows(clips: Clips) -> list[reporting_mixtures.MixtureRow]:
    return reporting_mixtures.draw(clips, tones.corpus("train"), ROWS)


def figures(
    subject: ModelUnderTest, mixture_rows: list[reporting_mixtures.MixtureRow], clips: Clips, path: Path
) -> Figures:
    """As they are written and read again."""
    measured = mixture_figures.measure(subject, dict(enumerate(mixture_rows)), Sounds(clips))
    path.write_text(json.dumps({"model": "bands@1", "list": "d"} | Summary(measured, draws=50).as_json()))
    return comparison.read(path)


def test_properties_are_those_of_the_sounds(mixture_rows: list[reporting_mixtures.MixtureRow], clips: Clips) -> None:
    """Every query is in its target's band and in no other's; so are the sounds."""
    subject = ModelUnderTest(bundle(), "cpu")
    done: list[int] = []
    values = failures.properties(
        subject, DetectorUnderTest("bands@1", subject.bundle.detector), mixture_rows, Sounds(clips), done.append
    )
    assert values.keys() == failures.PROPERTIES.keys()
    assert sum(done) == ROWS == len(values["level"])
    assert values["query_target"].min() > 0.9
    assert values["query_interference"].max() < 0.3
    assert np.allclose(values["margin"], values["query_target"] - values["query_interference"])
    assert values["overlap"].max() < 0.2
    sounds = Sounds(clips)
    assert values["example"] == pytest.approx([len(sounds.waveform(row.examples[0])) / 32000 for row in mixture_rows])
    assert all(0 < lasts <= row.seconds for lasts, row in zip(values["sounds"], mixture_rows, strict=True))


def test_overlap_is_the_shared_part_of_the_energy() -> None:
    filters = mel_bands(1024, 32000, failures.BANDS, 30.0, 16000, normalised=False)
    noise = torch.randn(2, 64000, generator=torch.Generator().manual_seed(0))
    low, high = (torch.sin(2 * torch.pi * hertz * torch.arange(64000) / 32000) for hertz in (300.0, 5000.0))
    shares = {
        name: failures.spectrum_shares(sound, filters)
        for name, sound in (("low", low), ("high", high), ("both", low + high), ("one", noise[0]), ("two", noise[1]))
    }

    def overlap(first: str, second: str) -> float:
        return torch.minimum(shares[first], shares[second]).sum().item()

    assert overlap("low", "low") == pytest.approx(1)
    assert overlap("low", "high") < 0.01
    assert overlap("low", "both") == pytest.approx(0.5, abs=0.02)
    assert overlap("one", "two") > 0.9


def test_thirds_show_what_the_gain_goes_with() -> None:
    random = np.random.default_rng(0)
    cause, nothing = random.uniform(size=(2, 300))
    gains = 10 * cause + random.normal(0, 1, 300)
    gains[:5] = np.nan
    wrong, ones = (gains < 2).astype(float), np.full(300, 1.0)
    labels = [f"class {at % 12}" for at in range(300)]
    values = {failures.GAIN: gains, failures.WRONG: wrong, failures.OWN: gains + 1, failures.BOUND: 20 * ones}
    found = Figures("m@1", "d", list(range(300)), labels, list(range(300)), values)
    one = failures.thirds("overlap", cause, found)
    assert one.correlation > 0.9
    assert [part.gain.rows for part in one.parts] == pytest.approx([98, 98, 99], abs=2)
    lows = [part.low for part in one.parts]
    assert lows == sorted(lows) and all(part.low <= part.high for part in one.parts)
    for part in one.parts:
        inside = (cause >= part.low) & (cause <= part.high)
        assert part.gain.value == pytest.approx(np.nanmean(gains[inside]))
    assert one.parts[0].wrong.value > 0.5 > one.parts[1].wrong.value
    assert abs(failures.thirds("level", nothing, found).correlation) < 0.2
    binary = failures.thirds("ear_right", (cause > 0.3).astype(float), found)
    assert [(part.low, part.high) for part in binary.parts] == [(0, 0), (1, 1)]
    alone = failures.thirds("ear_right", ones, found)  # the same for all
    assert len(alone.parts) == 1 and alone.parts[0].gain.rows == 295 and np.isnan(alone.correlation)
    failures_report.properties_table([one, binary, alone])


def test_steps_lead_from_one_clip_to_the_ideal_mask(
    mixture_rows: list[reporting_mixtures.MixtureRow], clips: Clips, tmp_path: Path
) -> None:
    """They add up; and a model that ignores queries gains nothing by a better one."""
    heard = figures(ModelUnderTest(bundle(), "cpu"), mixture_rows, clips, tmp_path / "heard.json")
    unheard = figures(deaf(0), mixture_rows, clips, tmp_path / "deaf.json")
    for found in (heard, unheard):
        steps = [estimate.value for _, estimate in failures.losses(found)]
        assert sum(steps[:-1]) == pytest.approx(steps[-1], abs=1e-6)
        assert steps[1] == pytest.approx(0, abs=1)
    assert failures.losses(heard)[2][1].value == 0
    assert failures.losses(unheard)[2][1].value > 10


def test_the_worst_are_pictured_one_a_class(
    mixture_rows: list[reporting_mixtures.MixtureRow], clips: Clips, tmp_path: Path
) -> None:
    found = figures(deaf(BANDS - 1), mixture_rows, clips, tmp_path / "deaf.json")
    places = failures.worst(found, 3)
    labels = [found.labels[at] for at in places]
    gains = found.values[failures.GAIN]
    assert len(set(labels)) == 3
    assert gains[places].tolist() == sorted(gains[places])
    assert gains[places[0]] == gains.min()
    assert all(gains[at] == gains[np.array(found.labels) == found.labels[at]].min() for at in places)
    times = np.arange(32000) / 32000
    waveforms = {"mixture": np.sin(times * 9000).astype(np.float32), "query": np.zeros(500, np.float32)}
    shown = failures_report.Shown("two tones", waveforms)
    failures_report.draw([shown] * 3, tmp_path / "worst.png", "bands@1")
    assert 5_000 < (tmp_path / "worst.png").stat().st_size < 400_000
