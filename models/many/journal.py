"""The table of what was done with many recordings: a CSV file that grows while they are worked on, and tells the next
run what is done."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import typer
from rich.table import Column, Table

from models.console import console, progress_console, shown
from models.many.inputs import Input
from models.own_recordings import printable

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


class Journal:
    """A row of text for each recording. A context manager that leaves the rows in the order of the recordings.

    inputs: the recordings. path: the CSV file. shown, hidden: the columns of this command, of which the first are for
    people too.
    """

    def __init__(
        self, path: Path, shown: Sequence[str], hidden: Sequence[str], inputs: Sequence[Input], made_of: Any
    ) -> None:
        """made_of: what the outputs depend on beside their recordings, for JSON."""
        self.path = path
        self.shown = list(shown)
        self.columns = ["recording", "status", *shown, *hidden, "warnings", "error", "output", "made_of"]
        self.inputs = inputs
        self._digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
        self._rows: dict[str, dict[str, str]] = {}
        self._earlier = self._read()
        self._file: TextIO | None = None

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows, in the order of the recordings."""
        return [self._rows[key] for key in map(_key, self.inputs) if key in self._rows]

    @property
    def failed(self) -> bool:
        """Whether a recording has failed."""
        return any(row["status"] == FAILED for row in self.rows)

    @property
    def summary(self) -> str:
        """How many recordings have which status, as a sentence."""
        counted = Counter(row["status"] for row in self.rows)
        return ", ".join(f"{counted[status]} {status}" for status in (DONE, SKIPPED, FAILED) if counted[status])

    def waiting(self, exist: Callable[[dict[str, str]], bool]) -> list[Input]:
        """Return the recordings that are not done; the others become rows. exist: whether a row's outputs are there."""
        left = []
        for one in self.inputs:
            row = self._earlier.get(_key(one))
            if row and row["status"] != FAILED and row["made_of"] == self._made_of(one) and exist(row):
                self._rows[_key(one)] = row | {"status": SKIPPED, "recording": printable(one.path)}
            else:
                left.append(one)
        return left

    def add(self, one: Input, error: Exception | None = None, **cells: Any) -> None:
        """Add the row of a recording, and write it."""
        row = {
            "recording": printable(one.path),
            "status": DONE if error is None else FAILED,
            **{name: str(value) for name, value in cells.items()},
            "error": "" if error is None else str(getattr(error, "detail", error)),
            "output": _key(one),
            "made_of": self._made_of(one),
        }
        self._rows[_key(one)] = row
        if self._file is not None:
            self._writer(self._file).writerow(row)
            self._file.flush()

    def __enter__(self) -> "Journal":
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._write_all(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        whole = self.path.with_name(f".{self.path.name}.new")
        with whole.open("w", encoding="utf-8", newline="") as file:
            self._write_all(file)
        whole.replace(self.path)

    def _write_all(self, file: TextIO) -> None:
        """Write the rows so far, and those of earlier runs about other recordings, or not yet repeated ones."""
        writer = self._writer(file)
        writer.writeheader()
        writer.writerows(({**self._earlier, **self._rows}).values())
        file.flush()

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if {"output", "made_of", "status"} <= row.keys()]
        except (OSError, ValueError, csv.Error):
            return {}
        return {row["output"]: row for row in rows if None not in row.values()}

    def _made_of(self, one: Input) -> str:
        try:
            status = one.path.stat()
        except OSError:
            return ""
        digest = self._digest.copy()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]


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


def _key(one: Input) -> str:
    return printable(Path(one.folder, one.name))
