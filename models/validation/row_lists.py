"""Lists of mixtures as CSV files: a line for each row, which is a dataclass of texts, numbers and tuples of texts."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")

_CONVERT: dict[Any, Any] = {int: int, float: float, tuple[str, ...]: lambda text: tuple(text.split())}


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Return the rows of a list. Raises ValueError for a file with other columns."""
    kinds = {field.name: field.type for field in fields(kind)}  # pyright: ignore[reportArgumentType]  a dataclass
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(kinds):
            raise ValueError(f"{path} is not a list of mixtures: its columns should be {', '.join(kinds)}")
        return [kind(**{name: _CONVERT.get(kinds[name], str)(text) for name, text in row.items()}) for row in reader]


def write(rows: Iterable[Any], path: Path, kind: type[Any]) -> None:
    """Write rows of a kind; words of a tuple are separated by spaces."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = asdict(row)
            writer.writerow({name: " ".join(cell) if isinstance(cell, tuple) else cell for name, cell in cells.items()})
