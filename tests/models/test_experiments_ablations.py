"""Ablations: the list that is committed, and two of its kind trained, measured and put beside each other."""

import csv
import shlex
from pathlib import Path

import pytest
import typer

from models.__main__ import main
from models.evaluation import reporting_mixtures
from models.experiments import ablations
from models.labels import ontology
from models.runs import run_folder
from models.training import commands as training
from models.training.recipe import Recipe, with_changes
from tests.models import tones

pytestmark = pytest.mark.usefixtures("one_thread")
LONGEST = 0.7  # seconds of a clip: nobody learns much here
LISTED = ablations.read(ablations.LISTED)


@pytest.mark.parametrize("ablation", LISTED, ids=lambda ablation: ablation.name)
def test_every_line_is_a_command(ablation: ablations.Ablation, shared: Path, tmp_path: Path) -> None:
    budget = ablations.Budget(shared / "corpus", tmp_path, shared / "teacher", tmp_path, tmp_path)
    _, name, *arguments = budget.training_arguments(ablation)
    asked = typer.main.get_group(training.app).commands[name].make_context(name, arguments).params
    changed = with_changes(Recipe(), asked["change"] or [])
    assert asked["steps"] == ablation.steps(ablations.STEPS)
    assert (changed != Recipe()) == bool(asked["change"]), "a change is one"
    assert str(asked["query_encoder"]) == str(tmp_path if ablation.name == "transformer" else shared / "teacher")


def test_twenty_classes_are_hidden_that_can_be_asked_for() -> None:
    arguments = shlex.split(next(ablation for ablation in LISTED if ablation.name == "hidden").arguments)
    hidden = set(run_folder.class_mids(arguments[1]))
    askable = {row.label for row in reporting_mixtures.read()}
    assert len(askable & {ontology()[mid].name for mid in hidden}) == 20


def test_a_costlier_step_is_taken_less_often() -> None:
    assert ablations.Ablation("a", "", 1.25, "").steps(1000) == 800


LINES = """name,asks,cost,arguments
baseline,the default,1,
bias,adds,2,--bias-only
ear,another ear,1,--ear {transformer}
hidden,never heard,1,--hide Siren
"""


def test_they_are_trained_measured_and_compared_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.csv").write_text(LINES)
    Path("corpus").mkdir()
    tones.write(Path("corpus"), LONGEST)
    rows = reporting_mixtures.draw(tones.corpus("valid", longest=LONGEST), tones.corpus("train", longest=LONGEST), 6)
    reporting_mixtures.write(rows, Path("list.csv"))
    sizes = ["--channels", "8,8,8,8", "--steps", "2", "--batch", "2", "--rows", "2"]
    place = ["--corpus", "corpus", "--ear", str(shared / "teacher"), "--run", "small", "--list", "list.csv"]
    wanted = ["ablate", *place, *sizes, "--listed", "lines.csv", "--output", "table.csv"]
    assert main(wanted) == 0
    said = capsys.readouterr().out
    assert "ear: left out, since there is no --transformer" in said
    shown = said[said.index("small separators") :]
    assert shown.count("bias") == shown.count("hidden") == 2, "both tables name them"
    with Path("table.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert list(table) == ["baseline", "bias", "hidden"]
    assert [row["steps"] for row in table.values()] == ["2", "1", "2"]
    assert table["baseline"]["example_change"] == "" and table["baseline"]["label"]
    assert abs(float(table["bias"]["example_change"])) < 20 and table["bias"]["mixtures"] == "2 of the list"
    assert table["hidden"]["mixtures"] == "2 of 1 classes never heard" and table["hidden"]["label"] == ""
    change = float(table["bias"]["own"]) - float(table["baseline"]["own"])
    assert change == pytest.approx(float(table["bias"]["own_change"]), abs=0.02)
    assert table["hidden"]["command"].endswith("--run small/hidden --hide Siren")

    # What is done is not done again; what is asked otherwise is.
    before = {path: path.stat().st_mtime_ns for path in Path("small").glob("*/figures.json")}
    assert main([*wanted, "--only", "bias"]) == 0
    assert main([*wanted, "--only", "baseline", "--rows", "1"]) == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"baseline"}
    capsys.readouterr()
    assert main([*wanted, "--only", "biass"]) == 1
    assert "no ablation is called biass" in capsys.readouterr().err
