"""`python -m models train` and `python -m models ship`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from models import checkpoints
from models.corpus.clips import Clips
from models.corpus.decoded import load
from models.evaluation import mixtures
from models.evaluation.separation import area_under_curve
from models.presence import Rule
from models.query import BASE_RULES
from models.training import embeddings, shipping, teacher
from models.training.mixing import Recipe
from models.training.separator import Schedule, Trainer

console = Console(stderr=True)

Corpus = Annotated[Path, typer.Option(help="Folder of WebDataset shards, train-*.tar and valid-*.tar.")]
TeacherFolder = Annotated[Path, typer.Option("--teacher", help="Folder with yamnet.safetensors and class_map.csv.")]
Run = Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log.")]
Cache = Annotated[Path, typer.Option(help="Where decoded clips and their embeddings are kept.")]


def train(
    corpus: Corpus,
    teacher_folder: TeacherFolder,
    run: Run = Path("runs/base"),
    cache: Cache = Path(".cache"),
    minutes: Annotated[float, typer.Option(help="Length of the whole run; an interrupted one goes on.")] = 60.0,
) -> None:
    """Train the default preset's separator on a corpus of labelled clips."""
    trainer = Trainer(teacher.load(teacher_folder), run, Schedule(minutes=minutes))
    training, heard = _clips(corpus, trainer.model.ear, cache, "train")
    validation, _ = _clips(corpus, trainer.model.ear, cache, "valid")
    rows = list(mixtures.render(mixtures.read(), validation))
    in_memory = Clips(np.array(training.samples), training.clips)
    trainer.run(in_memory, heard, Recipe(), rows, lambda row: console.print(row))


def ship(
    corpus: Corpus,
    teacher_folder: TeacherFolder,
    run: Run = Path("runs/base"),
    cache: Cache = Path(".cache"),
    name: Annotated[str, typer.Option(help="Name of the model.")] = "base",
    version: Annotated[str, typer.Option(help="Its version.")] = "1",
    output: Annotated[Path, typer.Option(help="Folder for NAME.safetensors, NAME.json and NAME.manifest.csv.")] = Path(
        "models/weights"
    ),
) -> None:
    """Turn a run into a model: averaged weights in float16, class embeddings, presence, manifest."""
    trainer = Trainer(teacher.load(teacher_folder), run, Schedule())
    separator, ear = trainer.average, trainer.model.ear
    training, heard = _clips(corpus, ear, cache, "train")
    validation, _ = _clips(corpus, ear, cache, "valid")
    rows = list(mixtures.render(mixtures.read(), validation))
    bundle = shipping.bundle(name, version, ear, separator, trainer.sizes)
    bundle.class_embeddings = shipping.class_embeddings(heard, training)
    rule = Rule(window_seconds=shipping.PRESENCE_WINDOW, level=BASE_RULES.level)
    features, there = shipping.presence_features(ear, separator, rows, rule)
    even = torch.arange(len(features)) % 2 == 0
    rule = shipping.fit_presence(features[even], there[even])
    bundle.presence = asdict(rule)
    scores = torch.tensor([rule.presence(row) for row in features])
    console.print(f"presence: AUC {area_under_curve(scores[~even], there[~even]):.3f} on the rows not fitted on")
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.write(bundle, output / f"{name}.safetensors", output / f"{name}.json", half=True)
    shipping.write_manifest(training, "train", output / f"{name}.manifest.csv")
    shipping.write_curve(trainer.state.rows, output / f"{name}.training.csv", output / f"{name}.training.png")
    console.print(f"{output / name}.safetensors: {(output / f'{name}.safetensors').stat().st_size / 1e6:.1f} MB")


def _clips(corpus: Path, ear: Any, cache: Path, split: str) -> tuple[Clips, np.ndarray]:
    clips = load(corpus, split, cache, console.print)
    return clips, embeddings.load(ear, clips, cache / "embeddings" / f"{split}.npy")
