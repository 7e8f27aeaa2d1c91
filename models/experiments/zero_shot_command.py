"""`python -m models evaluate zero-shot`."""

from pathlib import Path
from typing import Annotated

import typer

from models.commands import Device
from models.console import console, count_bar, progress_console
from models.corpus.decoded import load
from models.evaluation.arguments import Cache, Corpus, Output, Plot
from models.evaluation.commands import app as evaluate_app
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.reports.json_report import write_rows
from models.experiments import zero_shot
from models.experiments.zero_shot_report import Report, draw_gaps
from models.experiments.zero_shot_training import HELD_OUT, train_without
from models.runs import run_folder
from models.training.progress import training_bar
from models.training.setups import Machine
from models.validation.rendering import Sounds


@evaluate_app.command("zero-shot")
def evaluate_zero_shot(
    corpus: Corpus,
    weights: Annotated[
        str | None, typer.Option(help="A model whose config lists held-out classes. Default: train one.")
    ] = None,
    hold_out: Annotated[
        str, typer.Option("--hold-out", help="For training: the held-out classes, with all below them.")
    ] = HELD_OUT,
    minutes: Annotated[float, typer.Option(help="For training: length of both runs together.", min=0.02)] = 60.0,
    run: Annotated[Path, typer.Option(help="For training: folder for the runs and the model.")] = Path(
        "runs/zero-shot"
    ),
    beside: Annotated[str | None, typer.Option(help="Another model, to compare on the same mixtures.")] = None,
    valid_only: Annotated[
        bool,
        typer.Option(
            "--valid-only", help="Held-out clips of the valid split only: the other model was trained on the rest."
        ),
    ] = False,
    rows: Annotated[int, typer.Option(help="How many mixtures.", min=1)] = zero_shot.ROWS,
    seconds: Annotated[float, typer.Option(help="Length of a mixture.", min=0.5, max=10)] = zero_shot.SECONDS,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 2028,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
    plot: Plot = None,
) -> None:
    """Compare held-out classes with classes that the model was trained on, in the same mixtures, by example."""
    if weights is None:
        place = run_folder.Place(corpus, cache, run_folder.class_mids(hold_out))
        machine = Machine(accelerator="cpu" if device == "cpu" else "auto")
        with training_bar("zero-shot") as (report_row, advance_step):
            weights = str(train_without(place, run, minutes, machine, report_row, advance_step))
    bundle = load_bundle(weights)
    held_out = zero_shot.classes_never_seen(bundle.config)
    other = load_bundle(beside) if beside else None
    clips = [load(corpus, "valid", cache, progress_console.print)]
    if not valid_only:
        clips.append(load(corpus, "train", cache, progress_console.print))
    drawn = zero_shot.draw(clips[0], None if valid_only else clips[1], held_out, rows, seconds, seed)
    if skipped := zero_shot.classes_without_rows(clips, held_out, drawn):
        progress_console.print(f"not measured, clips of one source group only: {', '.join(skipped)}")
    if other and not valid_only:
        progress_console.print(f"{other.name} was trained on some of these clips, if on this corpus: see --valid-only")
    sounds = Sounds(*clips)
    with count_bar("mixtures", len(drawn) * (2 if other else 1)) as advance:
        report = Report(bundle, zero_shot.measure(ModelUnderTest(bundle, device), drawn, sounds, advance))
        if other:
            report.put_beside(other, zero_shot.measure(ModelUnderTest(other, device), drawn, sounds, advance))
    for table in report.tables():
        console.print(table)
    if output:
        write_rows(report.as_json() | {"list": zero_shot.digest(drawn), "valid_only": valid_only, "seed": seed}, output)
    if plot:
        draw_gaps(report, plot)
