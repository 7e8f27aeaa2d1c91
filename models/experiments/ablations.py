"""Ablations: small separators, each trained with one difference to the default, measured on the same mixtures.

`ablations.csv` says which; every line is a command that anyone can give alone: `train separator`, then `evaluate`.
Budgets are equal in computing time: where a step of one costs more than the baseline's, it gets fewer of them.
"""

import csv
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.experiments.ablation_table import BASELINE, figures_of, hides, row_of, tables, write
from models.experiments.zero_shot_command import evaluate_app
from models.training import commands as training

LISTED = Path(__file__).with_name("ablations.csv")
CHANNELS = "16,32,64,128"  # 2.6 M parameters: learns from 110 s of audio a second of one core
STEPS = 700  # 12 hours of audio, about 7 minutes of one core
ROWS = 300
DONE = "ablation.json"  # in a run's folder, when it is measured: the commands that it came of
console = Console()


@dataclass(frozen=True)
class Ablation:
    """name: also of its run's folder. cost: of a step, in steps of the baseline. arguments: of `train separator`."""

    name: str
    asks: str
    cost: float
    arguments: str

    def steps(self, budget: int) -> int:
        """How many the budget, in steps of the baseline, pays for."""
        return max(1, round(budget / self.cost))


@dataclass(frozen=True)
class Budget:
    """What all ablations of a table share. steps: of the baseline. transformer: the run of a detector, if there is
    one. rows: of the mixtures that are measured."""

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

    def training(self, ablation: Ablation) -> list[str]:
        """Arguments of `python -m models` that train it."""
        sizes = ["--channels", self.channels] + (["--batch", str(self.batch)] if self.batch else [])
        of_its_own = [part.format(transformer=self.transformer) for part in shlex.split(ablation.arguments)]
        place = ["--corpus", str(self.corpus), "--cache", str(self.cache), "--ear", str(self.query_encoder)]
        run = ["--steps", str(ablation.steps(self.steps)), "--run", str(self.folder / ablation.name)]
        return ["train", "separator", *place, *sizes, *run, *of_its_own]

    def measuring(self, ablation: Ablation) -> list[str]:
        """Arguments that measure it: on the mixtures of all, or on those of the classes that it never heard."""
        run = self.folder / ablation.name
        place = ["--corpus", str(self.corpus), "--cache", str(self.cache), "--weights", str(run)]
        output = ["--rows", str(self.rows), "--output", str(figures_of(run))]
        if hides(run):
            beside = ["--beside", str(self.folder / BASELINE), "--valid-only"]
            return ["evaluate", "zero-shot", *place, *beside, *output]
        listed = ["--list", str(self.list_file)] if self.list_file else []
        return ["evaluate", "mixtures", *place, "--half", "report", *listed, *output]


def ablate(
    corpus: Annotated[Path, typer.Option(help="What to learn from; its valid split is measured on.")],
    query_encoder: Annotated[Path, typer.Option("--ear", help="The teacher's folder.", exists=True)],
    transformer: Annotated[Path | None, typer.Option(help="A detector's run, to be the ear of one of them.")] = None,
    run: Annotated[Path, typer.Option(help="Folder for a run each; what is finished there is kept.")] = Path(
        "runs/ablations"
    ),
    listed: Annotated[Path, typer.Option(help="CSV file of what to train.", exists=True, dir_okay=False)] = LISTED,
    only: Annotated[list[str] | None, typer.Option(help="One of them, beside the baseline; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(help="Of the baseline; the others get as much time.", min=1)] = STEPS,
    channels: Annotated[str, typer.Option(help="Of the small network.")] = CHANNELS,
    batch: training.BatchSize = None,
    rows: Annotated[int, typer.Option(help="How many mixtures, of the reporting half.", min=1)] = ROWS,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="Mixtures of another corpus, made by evaluate draw.", exists=True)
    ] = None,
    cache: training.Cache = Path(".cache"),
    output: Annotated[Path | None, typer.Option(help="CSV file for the table. Default: in the folder.")] = None,
) -> None:
    """Train a small separator for each line of ablations.csv, for the same time, and measure them beside each other."""
    budget = Budget(corpus, cache, query_encoder, transformer, run, steps, channels, batch, rows, list_file)
    baseline, *others = choose(read(listed), only or [])
    table = []
    for ablation in (baseline, *others):
        if "{transformer}" in ablation.arguments and transformer is None:
            console.print(f"{ablation.name}: left out, since there is no --transformer")
            continue
        console.print(f"[bold]{ablation.name}[/bold]: {ablation.asks}")
        finish(ablation, baseline, budget)
        command = shlex.join(["python", "-m", "models", *budget.training(ablation)])
        table.append(row_of(ablation.name, ablation.asks, command, run))
        write(table, output or run / "ablations.csv")  # of those so far: all of them take hours
    for shown in tables(table):
        console.print(shown)


def read(path: Path) -> list[Ablation]:
    """The listed ablations, of which the first is the baseline. Raises ValueError for another list."""
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
    """Those of the names, and the baseline; all of them without names. Raises ValueError for a name of none."""
    known = [ablation.name for ablation in ablations]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no ablation is called {', '.join(unknown)}, but {', '.join(known)}")
    return [ablation for ablation in ablations if not names or ablation.name in (BASELINE, *names)]


def finish(ablation: Ablation, baseline: Ablation, budget: Budget) -> None:
    """Train and measure one, unless what is there came of the same commands."""
    said_in = budget.folder / ablation.name / DONE
    said = json.loads(said_in.read_text()) if said_in.exists() else {}
    trained = {"training": budget.training(ablation)}
    if said.get("training") != trained["training"]:
        give(trained["training"])
    wanted = trained | {"measuring": budget.measuring(ablation), "baseline": budget.training(baseline)}
    if said != wanted:
        give(wanted["measuring"])
        said_in.write_text(json.dumps(wanted, indent=1) + "\n")


def give(arguments: list[str]) -> None:
    """The command of `python -m models` that these are the arguments of, in this process."""
    kind, *rest = arguments
    app = typer.main.get_command({"train": training.app, "evaluate": evaluate_app}[kind])
    app.main(rest, standalone_mode=False)
