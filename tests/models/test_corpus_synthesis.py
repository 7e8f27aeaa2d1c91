"""Sounds made by rule: that they sound, that YAMNet hears what they are meant to be, and their shards."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from models.__main__ import main
from models.corpus.clips import RATE
from models.corpus.relations import are_related
from models.corpus.sources.formats import open_source
from models.corpus.sources.recordings import Recording
from models.corpus.synthesis.catalogue import CATALOGUE
from models.corpus.synthesis.sounds import TAKES, Sounds
from models.labels import classes, find
from models.runs import teacher
from tests.end_to_end.figures import SOAK

SOURCES = 9 if SOAK else 1  # of each class that YAMNet hears
NUMBERS = range(len(CATALOGUE))
FIRST = 10
LESS_ALIKE, AMONG = {"Fire", "Engine", "Mains hum", "Bark"}, 25
SECONDS = 2  # of a take


@pytest.mark.parametrize("number", NUMBERS, ids=[label for label, _ in CATALOGUE])
def test_every_class_sounds_and_each_source_is_another(number: int) -> None:
    takes, other = (Sounds(seed, 1).render(number, SECONDS) for seed in (3, 4))
    for take in takes:
        assert take.shape == (SECONDS * RATE,)
        assert take.dtype == np.float32
        assert np.isfinite(take).all()
        assert np.abs(take).max() <= 1
    assert max(np.abs(take).max() for take in takes) > 0.05
    again = Sounds(3, 1).render(number, SECONDS)
    assert all(np.array_equal(one, same) for one, same in zip(takes, again, strict=True))
    alike = np.corrcoef(np.concatenate(takes), np.concatenate(other))[0, 1]
    assert abs(alike) < 0.9


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_yamnet_hears_most_sounds_as_what_they_are(shared: Path) -> None:
    network = teacher.load(shared / "teacher")
    sounds = Sounds(8, SOURCES * len(CATALOGUE))
    found: dict[str, list[int]] = {label: [] for label, _ in CATALOGUE}
    for row in sounds:
        label, _ = CATALOGUE[row % len(CATALOGUE)]
        with torch.inference_mode():
            heard = network(torch.from_numpy(np.concatenate(sounds.render(row, 4.0)))[None]).framewise[0].mean(0)
        related = [known.index for known in classes() if are_related(known.mid, find(label).mid)]
        best = max(float(heard[index]) for index in related if index is not None)
        found[label].append(int((heard > best).sum()))
    ranks = [rank for each in found.values() for rank in each]
    assert np.mean(np.array(ranks) < FIRST) > 0.6, found
    if SOAK:
        late = {label for label, each in found.items() if np.median(each) >= FIRST}
        assert late <= LESS_ALIKE, found
        assert all(np.median(found[label]) < AMONG for label in LESS_ALIKE), found


def test_the_command_writes_shards_that_are_listed_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["corpus", "synthesise", "-o", str(tmp_path), "--hours", "0.01", "--seconds", "1.5", "--seed", "5"]
    assert main([*words, "--workers", "2", "--format", "flac"]) == 0
    rows = [row for row in open_source(tmp_path, "train") if isinstance(row, Recording)]
    assert len(rows) == 12 * TAKES
    groups: dict[str, list[Recording]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    assert {len(takes) for takes in groups.values()} == {TAKES}
    for takes, (label, _) in zip(groups.values(), CATALOGUE, strict=False):
        assert {take.mids for take in takes} == {(find(label).mid,)}
        assert {take.source["license"] for take in takes} == {"CC0-1.0"}
    with (tmp_path / "manifest.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    before = (tmp_path / "train-000.tar").read_bytes()
    capsys.readouterr()
    assert main([*words, "--workers", "1", "--format", "flac"]) == 0
    assert (tmp_path / "train-000.tar").read_bytes() == before
    assert f"{len(rows)} clips" in capsys.readouterr().out
