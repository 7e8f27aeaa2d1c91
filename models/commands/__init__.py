"""The commands of `python -m models` that use a model, one in each module, and what they have in common.

What takes long to import, torch above all, is imported by what uses it, so that --help is there at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from models.console import progress_console, shown
from models.options import SPEEDS, Quality

if TYPE_CHECKING:
    from models.audio import Waveform
    from models.compute.precision import Precision
    from models.engine import Engine
    from models.many.inputs import Input
    from models.own_recordings import OwnRecording

Recordings = Annotated[
    list[str],
    typer.Argument(
        metavar="RECORDING", help="Recordings in any format that FFmpeg reads: files, folders, or quoted globs."
    ),
]
Weights = Annotated[str, typer.Option(help="A shipped model's name, or a folder made by convert or ship.")]
DetectorFile = Annotated[
    Path | None, typer.Option("--detector", help="The authors' htsat_audioset_2048d.ckpt.", exists=True, dir_okay=False)
]
SeparatorFile = Annotated[
    Path | None,
    typer.Option(
        "--separator",
        help="The authors' zeroshot_asp_full.ckpt; alone will do, it holds both.",
        exists=True,
        dir_okay=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto: bfloat16 where it is fast; exact: float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Track = Annotated[
    int | None, typer.Option("--track", min=1, help="Audio track, from 1. Default: the first that can be read.")
]
QualityOption = Annotated[
    Quality, typer.Option("--quality", help=f"high: mean of {len(SPEEDS['high'])} speeds, as many times as slow.")
]
Span = Annotated[
    list[str] | None,
    typer.Option("--span", help="A part of at least 0.1 s, START-END: 3.2-5.0, or 1:02:03-1:02:05.5; repeatable."),
]


def find_inputs(arguments: list[str], output: Path) -> list[Input]:
    from models.many.inputs import NothingFound, find

    try:
        return find(arguments, output)
    except NothingFound as error:
        raise typer.BadParameter(str(error)) from None


def load_engine(weights: str, detector: Path | None, separator: Path | None, device: str, precision: str) -> Engine:
    from models.engine import Engine

    if precision not in ("auto", "exact"):
        raise typer.BadParameter(f"{precision!r} is neither auto nor exact", param_hint="--precision")
    chosen: Precision = "exact" if precision == "exact" else "auto"
    given = {name: path for name, path in (("detector", detector), ("separator", separator)) if path is not None}
    with progress_console.status("loading the model"):
        return Engine.load(given or weights, device, chosen)


@contextmanager
def decode(path: Path, track: int | None = None, near: Path | None = None) -> Iterator[OwnRecording]:
    from models.own_recordings import open_recording

    with ExitStack() as stack:
        with progress_console.status("decoding"):
            recording = stack.enter_context(open_recording(path, track, near))
        for warning in recording.warnings:
            progress_console.print(f"[yellow]{shown(path.name)}: {escape(warning)}")
        yield recording


def read_examples(
    path: Path, warnings: list[str], track: int | None = None, spans: Sequence[tuple[float, float]] = ()
) -> list[Waveform]:
    """Return the examples in a file, its spans or all of it, and add its warnings to `warnings`."""
    from models.own_recordings import printable

    with decode(path, track) as recording:
        warnings += [f"{printable(path.name)}: {warning}" for warning in recording.warnings]
        return [recording.span(*span) for span in spans] or [recording.read()]


def parse_span(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    try:
        return _seconds(start), _seconds(end)
    except ValueError:
        message = f"{text!r} is not a span: write START-END in seconds, or as a clock, such as 3.2-5.0 or 12:03-12:05.5"
        raise typer.BadParameter(message) from None


def _seconds(text: str) -> float:
    """Return the seconds that 75.5, 1:15.5 and 0:01:15.5 mean. Raises ValueError."""
    *clock, last = text.split(":")
    seconds = float(last)
    if len(clock) > 2 or (clock and seconds >= 60) or (len(clock) == 2 and int(clock[1]) >= 60):
        raise ValueError(text)
    return seconds + sum(int(part) * 60.0**power for power, part in enumerate(reversed(clock), start=1))
