"""`name-classes` and `evaluate names`, on a small model and a corpus of tones."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models import checkpoints
from models.__main__ import main
from models.evaluation import reporting_mixtures
from models.experiments.class_names import QUERIES
from models.labels import classes, find
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.queries.query import BASE_RULES
from models.runs import clip_embeddings, plda_fit
from tests.models import tones

LONGEST = 0.7  # seconds of a clip
SMALL = {"bands": 64, "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "code": 8, "recurrent": 8}
DETECTOR = {"class_indices": list(range(521)), "rate": 32_000}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, a list of mixtures, and a model with a prior whose only class is Speech."""
    torch.manual_seed(0)
    (tmp_path / "corpus").mkdir()
    tones.write(tmp_path / "corpus", LONGEST)
    valid, train = (tones.corpus(split, longest=LONGEST) for split in ("valid", "train"))
    reporting_mixtures.write(reporting_mixtures.draw(valid, train, 4), tmp_path / "list.csv")
    detector = Yamnet(**DETECTOR).eval()
    for module in detector.modules():  # by default the layers forget what they hear: all embeddings are equal
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    separator = ResUNet(detector, **checkpoints.as_tuples(SMALL)).eval()
    query = asdict(BASE_RULES)
    config = {"name": "small", "version": "7", "preset": "base"}
    config |= {"detector": DETECTOR, "separator": SMALL, "query": query}
    made = checkpoints.Bundle("small", "7", detector, separator, config, presence={"bias": 1.0})
    made.prior = plda_fit.fit(clip_embeddings.load(detector, train, tmp_path / ".cache" / "tests"), train)
    made.class_embeddings = {find("Speech").mid: torch.ones(1024)}
    checkpoints.save(made, tmp_path / "small", half=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_made_anew_and_evaluated_while_all_else_stays(place: Path) -> None:
    before = checkpoints.load("small")
    assert main(["name-classes", "--corpus", "corpus", "--weights", "small"]) == 0
    after = checkpoints.load("small")
    for network in ("detector", "separator", "prior"):
        old, new = (
            entry.state() if network == "prior" else entry.state_dict()
            for entry in (getattr(before, network), getattr(after, network))
        )
        assert all(torch.equal(old[name], new[name]) for name in old), network
    assert (after.name, after.version, after.presence) == (before.name, before.version, before.presence)

    assert set(after.clip_embeddings) == {find(name).mid for name in tones.LABELS}
    # A network that never learned is sure of nothing, so every class sounds a little in every clip.
    assert set(after.class_embeddings) == {label.mid for label in classes()[:521]}
    with Path("small/classes.csv").open(newline="") as file:
        assert {row["mid"] for row in csv.DictReader(file)} == set(after.class_embeddings)

    options = ["--list", "list.csv", "--half", "choose", "--hold-out", "Siren, Dog", "--rows", "4"]
    common = ["--corpus", "corpus", "--weights", "small", "--device", "cpu"]
    assert main(["evaluate", "names", *common, *options, "--output", "names.json"]) == 0
    lists = json.loads(Path("names.json").read_text())["lists"]
    assert len(lists) == 2
    for figures in lists.values():
        assert tuple(figures) == QUERIES
        assert figures["example"]["beyond_example"][0] == 0.0
        assert all(-100 < figures[query]["si_sdri"][0] < 100 for query in QUERIES)


def test_a_half_that_does_not_exist_is_refused() -> None:
    assert main(["evaluate", "names", "--corpus", "corpus", "--half", "both"]) == 2
