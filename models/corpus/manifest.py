"""Manifest of a corpus, and hence of a model: sources of its recordings, with the attribution that CC-BY requires."""

import csv
from collections.abc import Iterable
from pathlib import Path

from models.corpus.clips import Clip, Clips
from models.corpus.sources.recordings import Recording
from models.labels import ontology

COLUMNS = ("package", "path", "licence", "label", "mid", "split")

Row = tuple[str, str, str, str, str, str]


def write(clips: Clips, split: str, path: Path) -> None:
    """Write the manifest of one split's clips."""
    write_rows(rows(clips.clips, split), path)


def rows(entries: Iterable[Clip | Recording], split: str) -> set[Row]:
    """Return distinct rows, in COLUMNS' order, one for each class of an entry; unknown fields are empty."""
    found = set()
    for entry in entries:
        package, path, licence = (str(entry.source.get(name, "")) for name in ("package", "path", "license"))
        found |= {(package, path, licence, ontology()[mid].name, mid, split) for mid in entry.mids}
    return found


def write_rows(listed: Iterable[Row], path: Path) -> None:
    """Write sorted rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(listed))
