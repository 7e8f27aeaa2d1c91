"""`python -m models convert` and `describe`: a model's files, and its description."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from models.commands import DetectorFile, Weights, load_engine
from models.console import console, print_json, progress_console, shown


def convert(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.", file_okay=False)],
    separator: Annotated[Path, typer.Option(help="The authors' zeroshot_asp_full.ckpt.", exists=True, dir_okay=False)],
    detector: DetectorFile = None,
    name: Annotated[str, typer.Option(help="Name of the model, by which requests ask for it.")] = "paper",
    half: Annotated[
        bool,
        typer.Option("--half", help="Store weights as float16, the separator's large matrices as int8: half the size."),
    ] = False,
) -> None:
    """Convert the authors' files to a folder for --weights, without pickles."""
    from models import checkpoints

    with progress_console.status("converting"):
        bundle = checkpoints.authors_bundle(detector, separator)
        checkpoints.save(replace(bundle, name=name, config=bundle.config | {"name": name}), output, half)
    console.print(f"{shown(output)}: use it with --weights {shown(output)}")


def describe(
    weights: Weights = "base",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file. Default: printed.", dir_okay=False)
    ] = None,
) -> None:
    """Describe a model: its version and classes. An API that has the description takes jobs before any worker lives."""
    description = load_engine(weights, None, None, "cpu", "auto").describe()
    if output is None:
        print_json(description)
    else:
        output.write_text(json.dumps(description, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
