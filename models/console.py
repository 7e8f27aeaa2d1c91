"""What the commands of `python -m models` print: tables, JSON and progress bars; warnings and progress to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

if TYPE_CHECKING:
    from models.separation.separated_files import SeparatedFiles

progress_console = Console(stderr=True)
console = Console()

PRESENT = 0.5  # probability from which a sound is taken to be in a recording


def print_separation(done: SeparatedFiles) -> None:
    """Print the stems of one recording, and advice where a target may not be in it."""
    table = Table("stem", "presence", "peak", "loudness", Column("file", overflow="fold"))
    for stem in done.stems:
        table.add_row(
            shown(stem.name),
            f"{done.presence[stem.name]:.2f}" if stem.name in done.presence else "",
            f"{stem.peak:.3f}",
            f"{stem.loudness:.1f} LUFS" if stem.loudness is not None else "silent",
            shown(stem.path),
        )
    console.print(table)
    for name, presence in done.presence.items():
        if presence < PRESENT:
            advice = (
                f"{shown(name)} may not be in the recording ({presence:.0%}): try a span of it, or another example."
            )
            progress_console.print(f"[yellow]{advice}")
    if done.gain != 1:
        console.print(f"All stems are {-20 * math.log10(done.gain):.1f} dB quieter, so that nothing clips.")


def shown(name: str | Path) -> str:
    """Return a file's name for rich, which takes brackets for markup."""
    from models.own_recordings import printable

    return escape(printable(name))


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar; yield the function that advances it to a ratio, and changes its title."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with _transient_bar(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda ratio, stage: progress.update(task, completed=ratio, description=stage)


@contextmanager
def count_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; yield the function that adds to its count."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _transient_bar(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def _transient_bar(*columns: ProgressColumn) -> Progress:
    """Return a bar that is shown in terminals only, since a log has no use for one."""
    return Progress(*columns, console=progress_console, transient=True, disable=not progress_console.is_terminal)


def print_json(answer: dict[str, Any]) -> None:
    """Print an answer of --json."""
    typer.echo(json.dumps(answer, indent=2))
