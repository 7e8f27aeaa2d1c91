"""`python -m models train ...` and `python -m models ship`."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from models import checkpoints
from models.console import progress_console
from models.runs import run_folder
from models.training import detector as detecting
from models.training import paper, setups, shipping, trainers
from models.training.loop import OPTIMIZERS, Schedule
from models.training.progress import training_bar
from models.training.recipe import Recipe, with_batch, with_changes
from models.training.separator import LOSSES

app = typer.Typer(no_args_is_help=True, help="Train a detector, and a separator with it as query encoder.")

CORPUS_HELP = "Shards, a folder with a CSV, HDF5: see corpus --help."
CorpusOption = Annotated[Path, typer.Option("--corpus", help=CORPUS_HELP)]
CorporaOption = Annotated[
    list[Path],
    typer.Option("--corpus", help=f"{CORPUS_HELP} May be repeated: the first one validates, all are trained on."),
]
Cache = Annotated[Path, typer.Option(help="Where decoded clips and their embeddings are kept.")]
HoldOut = Annotated[
    str, typer.Option("--hold-out", help='Classes that no stage may use, with all below them: "Dog, Siren".')
]
Minutes = Annotated[
    float, typer.Option(help="Length of the whole run; an interrupted run resumes where it stopped.", min=0.01)
]
Steps = Annotated[int | None, typer.Option(help="Length in steps instead, which makes a run reproducible.", min=1)]
BatchSize = Annotated[int | None, typer.Option("--batch", help="Mixtures in a batch, of all processes together.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="The peak; warmed up, then decayed to zero.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(help="Processes: a GPU each. Or start this command with torchrun.", min=1)]
Precision = Annotated[str, typer.Option(help="auto, bf16-mixed, 32-true.")]
Optimizer = Annotated[str, typer.Option(help=f"{' or '.join(OPTIMIZERS)}.")]
Seed = Annotated[int, typer.Option(help="Of batches, masks and first weights.")]


@app.command("detector")
def train_detector(
    corpus: CorporaOption,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder with yamnet.safetensors; without, from labels alone.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Folder of audio files without labels, which the teacher labels.")
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log.")] = Path("runs/detector"),
    as_paper: Annotated[
        bool, typer.Option("--paper", help="The paper's size, clips of 10 s and mixing: needs AudioSet and a GPU.")
    ] = False,
    cache: Cache = Path(".cache"),
    hold_out: HoldOut = "",
    minutes: Minutes = 60.0,
    steps: Steps = None,
    batch: BatchSize = None,
    learning_rate: Rate = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    precision: Precision = setups.AUTO,
    optimizer: Optimizer = "adamw",
    seed: Seed = 0,
) -> None:
    """Train a transformer detector (ST-SED / HTS-AT) from clip-level labels, and from a teacher if there is one."""
    place = run_folder.Place(corpus[0], cache, run_folder.class_mids(hold_out), more=tuple(corpus[1:]))
    if place.held_out and teacher:
        raise typer.BadParameter("a teacher knows every class: leave out --teacher or --hold-out")
    if as_paper and teacher:
        raise typer.BadParameter("the paper's detector learns from labels alone: leave out --teacher or --paper")
    if unlabelled and not teacher:
        raise typer.BadParameter("--unlabelled needs --teacher: without it there is nothing to learn from such audio")
    setup = setups.DetectorSetup(place, teacher, unlabelled)
    if as_paper:
        setup = replace(
            setup,
            hyper=detecting.PAPER_HYPER,
            lessons=detecting.PAPER_LESSONS,
            recipe=detecting.PAPER_RECIPE,
        )
    setup = replace(setup, recipe=with_batch(setup.recipe, batch))
    schedule = _schedule(detecting.SCHEDULE, minutes, steps, learning_rate, seed, optimizer)
    with training_bar("detector") as (report, advance):
        trainers.train_detector(run, setup, schedule, setups.Machine(accelerator, devices, precision), report, advance)


@app.command("separator")
def train_separator(
    corpus: CorporaOption,
    query_encoder: Annotated[
        Path,
        typer.Option("--ear", help="Query encoder: a model, the teacher's folder, or a detector's run."),
    ],
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log.")] = Path("runs/separator"),
    recipe: Annotated[
        str, typer.Option(help="default, or paper: anchors, energy matching, own segment, L1.")
    ] = "default",
    cache: Cache = Path(".cache"),
    hold_out: HoldOut = "",
    minutes: Minutes = 60.0,
    steps: Steps = None,
    batch: BatchSize = None,
    learning_rate: Rate = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field of the recipe, such as room=0.2; may be repeated. Fields: "
            f"{', '.join(field.name for field in fields(Recipe))}.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Initial weights and sizes: a model's name or folder, or another run. With more --blocks than it has, "
            "these begin as identities.",
        ),
    ] = None,
    prior: Annotated[bool, typer.Option(help="Correct examples by a PLDA prior fitted to the training clips.")] = True,
    share: Annotated[
        float, typer.Option(help="Share of the corpus's source groups, to measure their effect.", min=0.01, max=1.0)
    ] = 1.0,
    channels: Annotated[
        str, typer.Option(help="Of the levels of the U-Net, such as 32,64,128,256: four, or the paper's six.")
    ] = "",
    blocks: Annotated[
        str, typer.Option(help="Residual blocks of the levels of the default U-Net, such as 1,2,2,1; see --from.")
    ] = "",
    bias_only: Annotated[
        bool, typer.Option("--bias-only", help="The query is only added to the channels, as in the paper.")
    ] = False,
    query: Annotated[
        str, typer.Option(help="Representation of an example: embeddings, or the teacher's class probabilities.")
    ] = run_folder.QUERIES[0],
    loss: Annotated[str, typer.Option(help="snr, or the paper's l1 on waveforms.")] = LOSSES[0],
    hide: Annotated[
        str, typer.Option("--hide", help="Classes that the separator may not use, although its query encoder may.")
    ] = "",
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    precision: Precision = setups.AUTO,
    optimizer: Optimizer = "adamw",
    seed: Seed = 0,
) -> None:
    """Train a separator on mixtures of labelled clips, with examples as queries."""
    if recipe not in ("default", "paper"):
        raise typer.BadParameter(f"--recipe is default or paper, not {recipe}")
    by_paper = recipe == "paper"
    switched = bias_only or query != run_folder.QUERIES[0] or loss != LOSSES[0]
    if by_paper and (change or start or blocks or switched):
        raise typer.BadParameter("the paper's recipe is fixed: leave out other options, or --recipe paper")
    sizes: dict[str, Any] = run_folder.separator_sizes(start) if start else {}
    if channels:
        sizes["channels"] = [int(width) for width in channels.split(",")]
    if blocks:
        sizes["blocks"] = [int(count) for count in blocks.split(",")]
    if bias_only:
        sizes["scales"] = False
    setup = setups.SeparatorSetup(
        run_folder.Place(
            corpus[0], cache, run_folder.class_mids(hold_out), run_folder.class_mids(hide), tuple(corpus[1:])
        ),
        query_encoder,
        by_paper,
        sizes,
        with_changes(with_batch(paper.recipe(128) if by_paper else Recipe(), batch), change or []),
        start,
        query,
        loss,
        prior and not by_paper,
        share,
    )
    schedule = _schedule(paper.SCHEDULE if by_paper else Schedule(), minutes, steps, learning_rate, seed, optimizer)
    with training_bar("separator") as (report, advance):
        trainers.train_separator(run, setup, schedule, setups.Machine(accelerator, devices, precision), report, advance)


def ship(
    run: Annotated[Path, typer.Option(help="A separator's run.")] = Path("runs/separator"),
    name: Annotated[str, typer.Option(help="Name of the model.")] = "base",
    version: Annotated[str, typer.Option(help="Its version.")] = "1",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the model, for --weights. Default: among the shipped ones.")
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(help="A model or run to average the weights with, such as its start; may be repeated."),
    ] = None,
) -> None:
    """Make a model of a run: averaged weights in float16 and int8, class embeddings, presence rule, manifest."""
    made = shipping.ship(run, name, version, output, blend or ())
    progress_console.print(
        f"{name}@{version} is in {output or checkpoints.SHIPPED}: {len(made.class_embeddings)} classes by name"
    )


def name_classes(
    corpus: CorpusOption,
    weights: Annotated[str, typer.Option(help="A shipped model's name, or a model's folder.")] = "base",
    ear: Annotated[
        Path | None, typer.Option(help="The model's query encoder where it was trained, to share its cache.")
    ] = None,
    cache: Cache = Path(".cache"),
) -> None:
    """Make the queries of a model's classes anew, from the clips of a corpus; its networks and all else stay."""
    made = shipping.name_classes(weights, corpus, ear, cache)
    of_clips = len(made.clip_embeddings)
    progress_console.print(f"{made.model_id}: {of_clips} classes by clips, {len(made.predicted)} by prediction")


def _schedule(
    schedule: Schedule, minutes: float, steps: int | None, learning_rate: float | None, seed: int, optimizer: str
) -> Schedule:
    if optimizer not in OPTIMIZERS:
        raise typer.BadParameter(f"--optimizer is {' or '.join(OPTIMIZERS)}, not {optimizer}")
    rate = schedule.learning_rate if learning_rate is None else learning_rate
    return replace(schedule, minutes=minutes, steps=steps, learning_rate=rate, seed=seed, optimizer=optimizer)
