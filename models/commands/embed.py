"""`python -m models embed`: queries to use again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from models.commands import (
    DetectorFile,
    Device,
    Json,
    PrecisionOption,
    SeparatorFile,
    Span,
    Track,
    Weights,
    load_engine,
    parse_span,
    read_examples,
)
from models.console import console, print_json, shown


def embed(
    examples: Annotated[
        list[Path], typer.Argument(metavar="EXAMPLE", help="Examples of one sound.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the query.", dir_okay=False)],
    span: Span = None,
    track: Track = None,
    weights: Weights = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    device: Device = "auto",
    precision: PrecisionOption = "exact",
    as_json: Json = False,
) -> None:
    """Make a query from examples of a sound and save it for separate --query."""
    spans = [parse_span(text) for text in span or []]
    if spans and len(examples) != 1:
        raise typer.BadParameter("--span selects parts of one example: give one file")
    engine = load_engine(weights, detector, separator, device, precision)
    warnings: list[str] = []
    made = engine.embed([part for path in examples for part in read_examples(path, warnings, track, spans)])
    made.save(output)
    if as_json:
        answer = {key: value for key, value in vars(made).items() if key != "vector"}
        print_json(answer | {"warnings": [*warnings, *made.warnings], "path": str(output)})
        return
    console.print(f"{shown(output)}: {made.model}, {made.seconds_used:.1f} s of sound, coherence {made.coherence:.2f}")
    for warning in made.warnings:
        console.print(f"[yellow]{escape(warning)}")
