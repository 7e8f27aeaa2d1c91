"""Relations of classes: which may be in one mixture, and what a label implies.

Labels are incomplete: a clip of `Dog` is a clip of `Animal` too. A class cannot interfere with its own ancestors and
descendants (so `Music` with no instrument), nor an ensemble with its parts.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Ensembles that contain others without being their ancestors in the ontology: (whole, part).
ENSEMBLES = (
    ("/m/04rlf", "/m/015lz1"),
    ("/m/05pd6", "/m/04szw"),
    ("/m/02hnl", "/m/0l14md"),
)


@cache
def parents() -> dict[str, frozenset[str]]:
    """Return all parents of each class by mid; the ontology is a graph, not a tree."""
    entries = json.loads((Path(__file__).parents[1] / "audioset" / "ontology.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {entry["id"]: set() for entry in entries}
    for entry in entries:
        for child in entry["child_ids"]:
            found[child].add(entry["id"])
    return {mid: frozenset(above) for mid, above in found.items()}


@cache
def ancestors(mid: str) -> frozenset[str]:
    """Return all ancestors of a class."""
    above = parents().get(mid, frozenset())
    return above.union(*(ancestors(parent) for parent in above))


@cache
def descendants(mid: str) -> frozenset[str]:
    """Return all descendants of a class."""
    return frozenset(other for other in parents() if mid in ancestors(other))


def with_descendants(mids: Iterable[str]) -> frozenset[str]:
    """Return the classes and all their descendants."""
    return frozenset().union(*({mid} | descendants(mid) for mid in mids))


@cache
def are_related(first: str, second: str) -> bool:
    """Return whether a clip of one class may be, or contain, a clip of the other."""
    lineages = [{mid} | ancestors(mid) for mid in (first, second)]
    if first in lineages[1] or second in lineages[0]:
        return True
    return any(
        whole == mid and part in lineage
        for whole, part in ENSEMBLES
        for mid, lineage in ((first, lineages[1]), (second, lineages[0]))
    )


@cache
def self_and_ancestors(mid: str) -> frozenset[str]:
    """Return the classes that are present in a clip with this label: the class and all its ancestors."""
    return ancestors(mid) | {mid}


@cache
def uncertain_classes(mid: str) -> frozenset[str]:
    """Return the classes that a clip with this label may or may not hold: descendants, and an ensemble's parts."""
    return frozenset(other for other in parents() if are_related(mid, other)) - self_and_ancestors(mid)


@cache
def siblings(first: str, second: str) -> bool:
    """Return whether two classes share a parent, which makes them hard to distinguish."""
    return first != second and bool(parents().get(first, frozenset()) & parents().get(second, frozenset()))
