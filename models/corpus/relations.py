"""Which classes may stand against one another in a mixture.

Clips carry one label, never all that is true: a clip of `Dog` is a clip of `Animal` too. A class is no interference
for its own ancestors and descendants (so `Music` for no instrument), nor an ensemble for its parts.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# What holds others without being above them in the ontology: (whole, part).
ENSEMBLES = (
    ("/m/04rlf", "/m/015lz1"),
    ("/m/05pd6", "/m/04szw"),
    ("/m/02hnl", "/m/0l14md"),
)


@cache
def parents() -> dict[str, frozenset[str]]:
    """All parents of each class by mid; the ontology is a graph, not a tree."""
    entries = json.loads((Path(__file__).parents[1] / "audioset" / "ontology.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {entry["id"]: set() for entry in entries}
    for entry in entries:
        for child in entry["child_ids"]:
            found[child].add(entry["id"])
    return {mid: frozenset(above) for mid, above in found.items()}


@cache
def ancestors(mid: str) -> frozenset[str]:
    """Everything above a class, itself left out."""
    above = parents().get(mid, frozenset())
    return above.union(*(ancestors(parent) for parent in above))


@cache
def descendants(mid: str) -> frozenset[str]:
    """Everything below a class, itself left out."""
    return frozenset(other for other in parents() if mid in ancestors(other))


def with_descendants(mids: Iterable[str]) -> frozenset[str]:
    """The classes and everything below them: what holding them out takes away."""
    return frozenset().union(*({mid} | descendants(mid) for mid in mids))


@cache
def are_related(first: str, second: str) -> bool:
    """Whether a clip of one class may well be, or hold, a clip of the other."""
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
    """What is true of a clip that is labelled with a class: the class and everything above it."""
    return ancestors(mid) | {mid}


@cache
def uncertain_classes(mid: str) -> frozenset[str]:
    """What a clip that is labelled with a class may hold or not: everything below it, and an ensemble's parts."""
    return frozenset(other for other in parents() if are_related(mid, other)) - self_and_ancestors(mid)


@cache
def siblings(first: str, second: str) -> bool:
    """Whether two classes share a parent: the hardest pairs to tell apart."""
    return first != second and bool(parents().get(first, frozenset()) & parents().get(second, frozenset()))
