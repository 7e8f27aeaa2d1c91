"""The practical list, and what its scenes are made of."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from models.__main__ import main
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.decoded import load
from models.corpus.rendering.synthesizer import Synthesizer
from models.corpus.reserved import reserved_groups
from models.evaluation import practical
from models.evaluation.band_mixtures import Bands
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.practical_mixtures import (
    BAND_ROWS,
    PLAYED,
    SAMPLES,
    SCENES,
    PracticalRow,
    PracticalSounds,
    crowd,
    read_rows,
    siren,
    write_rows,
)
from models.validation.rendering import Mix, Sounds
from tests.models import tones


def test_every_scene_has_its_rows_and_both_halves_of_most() -> None:
    rows = read_rows()
    counts = {scene: sum(row.scene == scene for row in rows) for scene in {row.scene for row in rows}}
    expected = {
        f"{label if label != 'siren' else 'Siren'} in {place if place != 'other' else 'another sound'}": (
            len(levels) * count
        )
        for label, places, levels, count in SCENES
        for place in places
    }
    assert counts == expected | {f"{scene} in a band": BAND_ROWS for scene in PLAYED}
    assert {row.half for row in rows} == {"choose", "report"}


def test_no_row_has_a_clip_that_training_uses(shared: Path) -> None:
    groups = {}
    for shard in sorted((shared / "corpus").glob("*.tar")):
        with tarfile.open(shard) as members:
            for member in members:
                if member.name.endswith(".json"):
                    file = members.extractfile(member)
                    assert file is not None
                    groups[member.name.removesuffix(".json")] = (shard.name[:5], json.load(file)["group"])
    for row in read_rows():
        kinds = [name.split(" ") for name in (row.target, row.interference, row.query)]
        keys = [key for kind, *keys in kinds if kind in ("clip", "crowd") for key in keys]
        of_training = [groups[key][1] for key in keys if groups[key][0] == "train"]
        assert set(of_training) <= reserved_groups()
        assert bool(of_training) == bool(row.heard)
        if row.target.startswith("clip "):
            assert groups[keys[0]][1] != groups[row.query.removeprefix("clip ")][1]


def test_what_is_made_is_the_same_each_time_and_sounds() -> None:
    voices = [np.random.default_rng(seed).normal(size=20_000 + seed).astype(np.float32) for seed in range(3)]
    for make in (lambda: siren(3), lambda: crowd(voices)):
        first, again = make(), make()
        assert first.shape == (SAMPLES,) and first.dtype == np.float32
        assert np.array_equal(first, again) and 0.02 < np.abs(first).max() < 1
    assert not np.array_equal(siren(3), siren(4))


def test_the_clearest_span_is_where_the_target_is_least_disturbed() -> None:
    random = np.random.default_rng(0)
    target, rest = (random.normal(size=SAMPLES).astype(np.float32) for _ in range(2))
    target[: 2 * RATE] = 0
    rest[int(2.5 * RATE) : int(3.6 * RATE)] *= 0.1
    span = practical.clearest_span(Mix(target + rest, target, rest))
    assert 2.45 * RATE <= span.start <= 2.65 * RATE and span.stop - span.start == RATE


@pytest.mark.filterwarnings("ignore:.*not writable")
def test_figures_of_rows_and_their_cells() -> None:
    """A target of noise in one band in interference of another, far above."""
    time = np.arange(5 * RATE) / RATE
    tones = [np.sin(2 * np.pi * pitch * time) * np.hanning(len(time)) for pitch in (440, 450, 3000)]
    samples = np.concatenate([(tone * 20_000).astype(np.int16) for tone in tones])
    clips = [
        Clip(key, at * len(time), len(time), ("/m/09x0r",), key, "effect", {}) for at, key in enumerate(("a", "b", "c"))
    ]
    bands = Bands((), Synthesizer("", Path()), print)
    sounds = PracticalSounds(Sounds(Clips(samples, clips)), bands)
    rows = [
        PracticalRow("choose", "Speech in Rain", "Speech", level, "clip a", 0, "clip c", 0, "clip b", heard)
        for level, heard in ((0.0, ""), (5.0, "base@1"))
    ]
    for row in rows:
        mix = sounds.render(row)
        levels = [np.square(part, dtype=np.float64).sum() for part in (mix.target, mix.interference)]
        assert 10 * np.log10(levels[0] / levels[1]) == pytest.approx(row.level, abs=0.2)
    found = practical.measure(ModelUnderTest(load_bundle("base"), "cpu"), rows, sounds)
    report = practical.Report(found, draws=20)
    assert report.counts["Speech in Rain, 0 dB"] == (1, 1, 0) and report.counts["Speech in Rain, 5 dB"] == (1, 1, 1)
    assert report.counts["Speech at 0 dB, choose"][0] == 1
    assert found.values["oracle/si_sdri"].min() > 15
    assert report.as_json()["rows"]["values"]["input/si_sdr"] == pytest.approx([0, 5], abs=0.3)
    assert report.table("title").row_count == len(report.cells)


def test_the_command_measures_with_the_quality_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of clips needs no score, but the command wants scores, a bank and FluidSynth for those that do."""
    tones.write(tmp_path, 1.0)
    for name in ("song.mid", "bank.sf2", "fluidsynth"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    clips = load(tmp_path, "valid", tmp_path / "cache").clips
    target = next(clip for clip in clips if clip.mid == tones.MIDS[0])
    example = next(clip for clip in clips if clip.mid == target.mid and clip.group != target.group)
    rain = next(clip for clip in clips if clip.mid == tones.MIDS[3])
    sounds = {"target": target, "interference": rain, "query": example}
    clip = {name: f"clip {of.key}" for name, of in sounds.items()}
    row = PracticalRow(
        "choose", "Speech in Rain", "Speech", 0.0, target_start=0, interference_start=0, heard="", **clip
    )
    write_rows([row], tmp_path / "list.csv")
    common = {"corpus": tmp_path, "cache": tmp_path / "cache", "scores": tmp_path, "bank": tmp_path / "bank.sf2"}
    common |= {"list": tmp_path / "list.csv", "device": "cpu"}
    answers = {}
    for quality in ("standard", "high"):
        options = common | {"quality": quality, "output": tmp_path / f"{quality}.json"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        assert main(["evaluate", "practical", *words]) == 0
        answers[quality] = json.loads((tmp_path / f"{quality}.json").read_text())
    assert "quality" not in answers["standard"] and answers["high"]["quality"] == "high"
    standard, high = (
        [answer["rows"]["values"][f"practical/{query}/si_sdri"] for query in practical.QUERIES]
        for answer in answers.values()
    )
    assert np.isfinite([standard, high]).all() and standard != high
