"""Ablations: small separators, each trained with one difference to the default, measured on the same mixtures.

`ablations.csv` lists them; each line can be run by hand: `train separator`, then `evaluate`. All have the same budget
of computing time: an ablation whose steps cost more than the baseline's gets fewer of them.
"""

import csv
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from models.console import console
from models.experiments.ablation_table import BASELINE, figures_of, hides, row_of, tables, write
from models.experiments.zero_shot_command import evaluate_app
from models.training import commands as training

LISTED = Path(__file__).with_name("ablations.csv")
CHANNELS = "16,32,64,128"  # 2.6 M parameters: trains on 110 s of audio a second with one core
STEPS = 700  # 12 hours of audio, about 7 minutes of one core
ROWS = 300
DONE = "ablation.json"  # in a run's folder once it is evaluated: the commands that made it


@dataclass(frozen=True)
class Ablation:
    """name: also of its run's folder. cost: of a step, in steps of the baseline. arguments: of `train separator`."""

    name: str
    asks: str
    cost: float
    arguments: str

    def steps(self, budget: int) -> int:
        """Return the number of steps for a budget in steps of the baseline."""
        return max(1, round(budget / self.cost))


@dataclass(frozen=True)
class Budget:
    """The common parameters of a table's ablations. steps: of the baseline. transformer: a detector's run, if there is
    one. rows: number of mixtures to evaluate."""

    corpus: Path
    cache: Path
    query_encoder: Path
    transformer: Path | None
    folder: Path
    steps: int = STEPS
    channels: str = CHANNELS
    batch: int | None = None
    rows: int = ROWS
    list_file: Path | None = None

    def training_arguments(self, ablation: Ablation) -> list[str]:
        """Return the arguments of `python -m models` that train an ablation."""
        sizes = ["--channels", self.channels] + (["--batch", str(self.batch)] if self.batch else [])
        of_its_own = [part.format(transformer=self.transformer) for part in shlex.split(ablation.arguments)]
        place = ["--corpus", str(self.corpus), "--cache", str(self.cache), "--ear", str(self.query_encoder)]
        run = ["--steps", str(ablation.steps(self.steps)), "--run", str(self.folder / ablation.name)]
        return ["train", "separator", *place, *sizes, *run, *of_its_own]

    def evaluation_arguments(self, ablation: Ablation) -> list[str]:
        """Return the arguments that evaluate it: on the mixtures of all, or on classes that it was not trained on."""
        run = self.folder / ablation.name
        place = ["--corpus", str(self.corpus), "--cache", str(self.cache), "--weights", str(run)]
        output = ["--rows", str(self.rows), "--output", str(figures_of(run))]
        if hides(run):
            beside = ["--beside", str(self.folder / BASELINE), "--valid-only"]
            return ["evaluate", "zero-shot", *place, *beside, *output]
        listed = ["--list", str(self.list_file)] if self.list_file else []
        return ["evaluate", "mixtures", *place, "--half", "report", *listed, *output]


def ablate(
    corpus: Annotated[Path, typer.Option(help="Corpus to train on; its valid split is for evaluation.")],
    query_encoder: Annotated[Path, typer.Option("--ear", help="The teacher's folder.", exists=True)],
    transformer: Annotated[Path | None, typer.Option(help="A detector's run, as query encoder of one of them.")] = None,
    run: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are kept.")] = Path("runs/ablations"),
    listed: Annotated[Path, typer.Option(help="CSV file of the ablations.", exists=True, dir_okay=False)] = LISTED,
    only: Annotated[list[str] | None, typer.Option(help="One of them, beside the baseline; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the baseline; the others get as much time.", min=1)] = STEPS,
    channels: Annotated[str, typer.Option(help="Of the small network.")] = CHANNELS,
    batch: training.BatchSize = None,
    rows: Annotated[int, typer.Option(help="How many mixtures, of the reporting half.", min=1)] = ROWS,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="Mixtures of another corpus, made by evaluate draw.", exists=True)
    ] = None,
    cache: training.Cache = Path(".cache"),
    output: Annotated[Path | None, typer.Option(help="CSV file for the table. Default: in the folder.")] = None,
) -> None:
    """Train a small separator for each line of ablations.csv, for the same time, and compare them."""
    budget = Budget(corpus, cache, query_encoder, transformer, run, steps, channels, batch, rows, list_file)
    baseline, *others = choose(read(listed), only or [])
    table = []
    for ablation in (baseline, *others):
        if "{transformer}" in ablation.arguments and transformer is None:
            console.print(f"{ablation.name}: left out, since there is no --transformer")
            continue
        console.print(f"[bold]{ablation.name}[/bold]: {ablation.asks}")
        finish(ablation, baseline, budget)
        command = shlex.join(["python", "-m", "models", *budget.training_arguments(ablation)])
        table.append(row_of(ablation.name, ablation.asks, command, run))
        write(table, output or run / "ablations.csv")  # after each one: all of them take hours
    for shown in tables(table):
        console.print(shown)


def read(path: Path) -> list[Ablation]:
    """Return the listed ablations; the first is the baseline. Raises ValueError for an invalid list."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        found = [Ablation(row["name"], row["asks"], float(row["cost"]), row["arguments"]) for row in rows]
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{path}: columns should be name, asks, cost, arguments: {fault}") from fault
    if not found or found[0].name != BASELINE:
        raise ValueError(f"{path}: the first should be called {BASELINE}")
    return found


def choose(ablations: list[Ablation], names: list[str]) -> list[Ablation]:
    """Return the named ablations and the baseline; without names all. Raises ValueError for an unknown name."""
    known = [ablation.name for ablation in ablations]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no ablation is called {', '.join(unknown)}, but {', '.join(known)}")
    return [ablation for ablation in ablations if not names or ablation.name in (BASELINE, *names)]


def finish(ablation: Ablation, baseline: Ablation, budget: Budget) -> None:
    """Train and evaluate an ablation, unless its folder holds the results of the same commands."""
    done_path = budget.folder / ablation.name / DONE
    done = json.loads(done_path.read_text()) if done_path.exists() else {}
    trained = {"training": budget.training_arguments(ablation)}
    if done.get("training") != trained["training"]:
        give(trained["training"])
    wanted = trained | {
        "measuring": budget.evaluation_arguments(ablation),
        "baseline": budget.training_arguments(baseline),
    }
    if done != wanted:
        give(wanted["measuring"])
        done_path.write_text(json.dumps(wanted, indent=1) + "\n")


def give(arguments: list[str]) -> None:
    """Run `python -m models` with these arguments in this process."""
    kind, *rest = arguments
    app = typer.main.get_command({"train": training.app, "evaluate": evaluate_app}[kind])
    app.main(rest, standalone_mode=False)
