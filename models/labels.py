"""AudioSet's classes and their tree: the 527 that detectors predict, in an ontology of 632.

Source and licence of the files: `audioset/ATTRIBUTION.md`.
"""

import csv
import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models.errors import LabelUnknown

CLASSES = 527

FOLDER = Path(__file__).parent / "audioset"


@dataclass(frozen=True)
class Label:
    """One class: `mid` is its machine id, `index` its column in a detector's output (None outside the 527),
    `path` the names from the root of the ontology down to the class itself, `synonyms` other words for it,
    `description` the ontology's own sentences."""

    name: str
    mid: str
    slug: str
    path: tuple[str, ...]
    index: int | None
    synonyms: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class KnownClass:
    """A class that a model detects or separates, as it is announced. askable: the model has an embedding of it, so that
    it can be asked for by name; source: whether that is of "clips" or "predicted"."""

    label: str
    mid: str
    slug: str
    path: tuple[str, ...]
    askable: bool
    source: str | None
    synonyms: tuple[str, ...]
    description: str


def slug(name: str) -> str:
    """`Male speech, man speaking` -> `male-speech-man-speaking`; unique among AudioSet's classes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def ontology() -> dict[str, Label]:
    """Return all 632 classes by mid, in the ontology's order.

    A class with several parents (a cowbell is a bell and a percussion instrument) has the path of the parent that the
    ontology lists first.
    """
    entries = json.loads((FOLDER / "ontology.json").read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name"] for entry in entries}
    descriptions = {entry["id"]: entry["description"] for entry in entries}
    parents: dict[str, str] = {}
    for entry in entries:
        for child in entry["child_ids"]:
            parents.setdefault(child, entry["id"])
    with (FOLDER / "class_labels_indices.csv").open(encoding="utf-8", newline="") as file:
        indices = {row["mid"]: int(row["index"]) for row in csv.DictReader(file)}

    def path(mid: str) -> tuple[str, ...]:
        return (*(path(parents[mid]) if mid in parents else ()), names[mid])

    return {
        mid: Label(name, mid, slug(name), path(mid), indices.get(mid), _synonyms().get(name, ()), descriptions[mid])
        for mid, name in names.items()
    }


@cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    """Return the synonyms of classes by name: English ones, then names in German, French and Spanish, in lower case."""
    words: dict[str, list[str]] = {}
    for table in ("synonyms.csv", "translations.csv"):
        with (FOLDER / table).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                cells = [cell for column, cell in row.items() if column != "name" and cell]
                words.setdefault(row["name"], []).extend(word.lower() for cell in cells for word in cell.split("; "))
    return {name: tuple(dict.fromkeys(found)) for name, found in words.items()}


@cache
def classes() -> tuple[Label, ...]:
    """Return the 527 classes in the order of a detector's columns."""
    known = [label for label in ontology().values() if label.index is not None]
    return tuple(sorted(known, key=lambda label: label.index or 0))


@cache
def _by_text() -> dict[str, Label]:
    """Return the classes by every text that identifies them: mid, name, slug; names take precedence over slugs."""
    labels = ontology().values()
    return (
        {label.slug: label for label in labels}
        | {label.name.lower(): label for label in labels}
        | {label.mid: label for label in labels}
    )


def find(text: str) -> Label:
    """Return the class with this name (any case), slug or mid. Raises LabelUnknown with similar names in `near`."""
    label = lookup(text)
    if label is None:
        names = near(text.strip())
        hint = f" Did you mean {' or '.join(repr(name) for name in names[:3])}?" if names else ""
        raise LabelUnknown(f"AudioSet has no class named {text!r}.{hint}", near=names)
    return label


def lookup(text: str) -> Label | None:
    """Return the class as `find` does, or None if there is no such class."""
    return _by_text().get(text.strip()) or _by_text().get(text.strip().lower())


def near(text: str, among: Iterable[Label] | None = None, count: int = 5) -> list[str]:
    """Return up to `count` names similar to `text`, most similar first; `among` restricts them."""
    wanted = text.lower()

    def similarity(label: Label) -> float:
        # 'Male speech, man speaking' is one class with two names: compare either.
        variants = [label.name.lower(), *label.name.lower().split(", ")]
        whole_word = any(wanted in variant.split() for variant in variants)
        ratio = max(difflib.SequenceMatcher(None, wanted, variant).ratio() for variant in variants)
        return ratio + (0.5 if whole_word else 0.0)

    scored = sorted(((similarity(label), label.name) for label in (among or ontology().values())), reverse=True)
    return [name for score, name in scored[:count] if score >= 0.6]
