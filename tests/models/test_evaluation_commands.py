"""`python -m models evaluate ...`, with the model that ships on a small corpus of files."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from models.__main__ import main
from models.checkpoints import CONFIG, SHIPPED, WEIGHTS, load
from models.corpus.clips import Clips
from models.evaluation import mixture_figures, reporting_mixtures
from models.evaluation.model_under_test import ModelUnderTest
from models.labels import find
from models.validation.rendering import Sounds
from tests.models import tones

VERSION = json.loads((SHIPPED / "base.json").read_text())["version"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones as wav files, their labels in a CSV."""
    folder = tmp_path_factory.mktemp("tones")
    tones.write(folder)
    return folder


@pytest.fixture(scope="module")
def list_file(corpus: Path, cache: Path) -> Path:
    """Rows of that corpus, drawn by the command."""
    path = corpus / "rows" / "drawn.csv"
    path.parent.mkdir()
    assert evaluate("draw", corpus, cache, "--output", path, "--rows", 6) == 0
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def holding_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, declared to have dogs held out."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(SHIPPED / "base.safetensors", folder / WEIGHTS)
    config = json.loads((SHIPPED / "base.json").read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"name": "undogged", "held_out": [find("Dog").mid]}))
    return folder


def evaluate(command: str, corpus: Path, cache: Path, *options: object) -> int:
    common = ["--corpus", corpus, "--cache", cache, *options]
    return main(["evaluate", command, *map(str, common)])


def test_mixtures_are_measured_drawn_and_compared(
    corpus: Path, cache: Path, list_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def measure(*options: object) -> None:
        common = ("--list", list_file, "--device", "cpu", *options)
        assert evaluate("mixtures", corpus, cache, *common) == 0

    measure("--output", tmp_path / "all.json", "--plot", tmp_path / "all.png")
    said = capfd.readouterr().out
    assert f"base@{VERSION}, 6 mixtures" in said and "trained clip" in said and "clean" in said
    assert (tmp_path / "all.png").stat().st_size > 10_000
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["model"] == f"base@{VERSION}"
    assert whole["mixtures"] == len(whole["rows"]["number"]) == 6
    assert whole["list"] == reporting_mixtures.digest(list_file)
    assert whole["means"]["mixture/example/si_sdri"]["rows"] == 6

    measure("--half", "report", "--rows", 3, "--output", tmp_path / "half.json")
    half = json.loads((tmp_path / "half.json").read_text())
    assert half["rows"]["number"] == [1, 3, 5]
    capfd.readouterr()
    arguments = [str(tmp_path / "all.json"), str(tmp_path / "half.json"), "--output", str(tmp_path / "compared.json")]
    assert main(["evaluate", "compare", *arguments]) == 0
    assert "mixture/example/si_sdri" in capfd.readouterr().out
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert compared["figures"]["mixture/example/si_sdri"]["difference"]["rows"] == 3
    assert abs(compared["figures"]["mixture/example/si_sdri"]["difference"]["value"]) < 0.1  # the same model


def test_a_list_of_another_corpus_is_refused(corpus: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate("mixtures", corpus, cache, "--rows", 2) == 1
    assert "another corpus's" in capfd.readouterr().err


def test_zero_shot_beside_a_model_trained_on_all_classes(
    corpus: Path, cache: Path, holding_out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--weights", holding_out, "--beside", "base", "--rows", 6, "--device", "cpu")
    files = ("--output", tmp_path / "unseen.json", "--plot", tmp_path / "unseen.png")
    assert evaluate("zero-shot", corpus, cache, *options, *files) == 0
    said = capfd.readouterr()
    assert f"undogged@{VERSION}" in said.out and f"base@{VERSION}" in said.out and "Dog" in said.out
    assert "--valid-only" in said.err
    whole = json.loads((tmp_path / "unseen.json").read_text())
    assert whole["held_out"] == ["Dog"]
    assert whole["rows"]["label"] == ["Dog"] * 6
    # The two are the same networks.
    assert whole["difference"]["unseen/si_sdri"]["value"] == pytest.approx(0, abs=0.01)
    assert (tmp_path / "unseen.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("zero-shot", ["--weights", "base"], "does not list its held-out classes"),
        ("mixtures", ["--weights", "nothing"], "neither a folder nor one of the shipped models"),
        ("mixtures", ["--half", "third"], "none of choose, report and both"),
        ("mixtures", ["--detector", __file__], "cannot separate"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    corpus: Path, cache: Path, command: str, options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(command, corpus, cache, *options) in (1, 2)
    told = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert said in told


def test_the_model_that_ships_keeps_its_floor(validation_clips: Callable[[Iterable[object]], Clips]) -> None:
    """Ten mixtures: whatever the machine, it is far from doing nothing, and below the bound."""
    rows = dict(list(enumerate(reporting_mixtures.read()))[10:20])  # not of the fifth that has every scene: quicker
    found = mixture_figures.measure(ModelUnderTest(load("base"), "cpu"), rows, Sounds(validation_clips(rows.values())))
    own, bound = found.values["mixture/own/si_sdri"], found.values["oracle/si_sdri"]
    assert own.mean() > 5
    assert (own < bound + 0.1).all()
