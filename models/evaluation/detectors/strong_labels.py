"""Recordings with strong labels: a table of events with times, and a folder with the files.

The table has a header and is separated by tabs or commas: `filename onset offset event_label` (DESED) or
`segment_id start_time_seconds end_time_seconds label` (AudioSet's strong labels). A class is AudioSet's name, in any
case and with underscores for spaces, or its mid. A row without times means that the file has no events.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from models.audio import mono
from models.errors import LabelUnknown
from models.evaluation.detectors.soundscapes import KnownEvent, Scene
from models.labels import find
from models.media import Limits, open_audio

_HEADINGS = (
    ("filename", "onset", "offset", "event_label"),
    ("segment_id", "start_time_seconds", "end_time_seconds", "label"),
)
_LIMITS = Limits(seconds=3600)  # scenes are in memory


@dataclass
class Table:
    """Events by file, and what was left out: `unknown` names that are not among the 527 classes, with their numbers of
    rows (data sets have additional classes), and `missing` files (some data sets are incomplete)."""

    path: Path
    events: dict[str, list[KnownEvent]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)


def read(path: Path) -> Table:
    """Read a table. Raises ValueError, which names the line, for a wrong header, invalid times and an empty table."""
    table = Table(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        heading = file.readline()
        separator = "\t" if "\t" in heading else ","
        names = [name.strip() for name in heading.strip().split(separator)]
        columns = next((known for known in _HEADINGS if set(known) <= set(names)), None)
        if columns is None:
            wanted = " or ".join(separator.join(known) for known in _HEADINGS)
            raise ValueError(f"{path}: the first line must name the columns {wanted}")
        for number, row in enumerate(csv.DictReader(file, names, delimiter=separator), 2):
            name, start, end, label = (row[column] or "" for column in columns)
            events = table.events.setdefault(name.strip(), [])
            if not (start or end or label):
                continue
            event = _event(f"{path}, line {number}", start, end, label, table.unknown)
            if event:
                events.append(event)
    if not any(table.events.values()):
        raise ValueError(f"{path}: no event of a known class")
    return table


def _event(place: str, start: str, end: str, label: str, unknown: Counter[str]) -> KnownEvent | None:
    try:
        first, last = float(start), float(end)
    except ValueError:
        raise ValueError(f"{place}: {start!r} and {end!r} are not times in seconds") from None
    if not 0 <= first < last < math.inf:
        raise ValueError(f"{place}: an event cannot last from {start} to {end} s")
    try:
        known = find(label.replace("_", " ") if not label.startswith("/") else label)
    except LabelUnknown:
        unknown[label] += 1
        return None
    if known.index is None:
        unknown[label] += 1
        return None
    return KnownEvent(known.mid, first, last)


def scenes(table: Table, folder: Path) -> Iterator[Scene]:
    """Yield the table's files, mono at their own rate, found anywhere under `folder` with any suffix.

    Missing files are added to `table.missing`. Raises FileNotFoundError if all are missing, and MediaError.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != table.path:
            found.setdefault(path.name, path)
            found.setdefault(path.stem, path)
    for name, events in table.events.items():
        path = folder / name
        if not path.is_file():
            path = found.get(Path(name).name) or found.get(Path(name).stem)
        if path is None:
            table.missing.append(name)
            continue
        with open_audio(path, _LIMITS) as reader:
            samples = mono(torch.cat([torch.from_numpy(block) for block in reader], dim=1))
            rate = reader.rate
        yield Scene(name, np.ascontiguousarray(samples.numpy()), rate, events)
    if len(table.missing) == len(table.events):
        raise FileNotFoundError(f"{folder} holds none of the {len(table.events)} files that {table.path.name} lists")
