"""Stems that earlier separations left below a folder of recordings: they are not recordings of it."""

import csv
from collections.abc import Iterable
from pathlib import Path

TABLE = "separations.csv"  # in the output folder of a separation of many recordings
FOLDER_END = "-stems"  # of the folder NAME-stems for the stems of one recording, NAME-TARGET.FORMAT


def without_earlier_stems(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files below a folder that no earlier separation is known to have written.

    Stems are what a `separations.csv` below the folder lists, and NAME-* in a folder NAME-stems. A folder of stems that
    is given itself is one of recordings.
    """
    listed = {stem for table in folder.rglob(TABLE) if table.parent != folder for stem in _listed(table)}
    return [file for file in files if file not in listed and (file.parent == folder or not _is_beside_stems(file))]


def _is_beside_stems(file: Path) -> bool:
    name = file.parent.name.removesuffix(FOLDER_END)
    return name != file.parent.name and file.name.startswith(f"{name}-")


def _listed(table: Path) -> list[Path]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            named = [row.get("stems") or "" for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [table.parent / stem for stems in named for stem in stems.split("|") if stem]
