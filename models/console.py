"""What the commands of `python -m models` print: tables, JSON, progress bars; warnings and progress to stderr."""

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
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from models.many.journal import Journal
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


def print_journal(journal: Journal, as_json: bool) -> None:
    """Print what was done with many recordings, and exit with 1 if any has failed."""
    if as_json:
        typer.echo(json.dumps(journal.rows, indent=2))
    else:
        table = Table(Column("recording", overflow="fold"), "status", *journal.shown)
        for row in journal.rows:
            table.add_row(*(shown(row.get(column, "")) for column in ("recording", "status", *journal.shown)))
        console.print(table)
        for row in journal.rows:
            if row["error"]:
                progress_console.print(f"[red]{shown(row['error'])}", soft_wrap=True)
        console.print(f"{journal.summary}: {shown(journal.path)}")
    if journal.failed:
        raise typer.Exit(1)


def shown(name: str | Path) -> str:
    """Return a file's name for rich, which takes brackets for markup."""
    from models.own_recordings import printable

    return escape(printable(name))


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar; yield the function that advances it to a ratio, and changes its title."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    visible = progress_console.is_terminal  # a log has no use for a bar
    columns = (*columns, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console, transient=True, disable=not visible) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda ratio, stage: progress.update(task, completed=ratio, description=stage)


def print_json(answer: dict[str, Any]) -> None:
    """Print an answer of --json."""
    typer.echo(json.dumps(answer, indent=2))
