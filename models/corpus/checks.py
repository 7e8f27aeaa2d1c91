"""Checks of a corpus: suspicious recordings, and groups and sounds that two splits share."""

from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from models.corpus.duplicates import Pair, alike, compare
from models.corpus.measurements import Measurement


def find_doubtful(measurements: list[Measurement], min_seconds: float) -> dict[str, list[Measurement]]:
    """Return suspicious recordings by reason."""
    return {
        "silent (peak below -60 dBFS)": [entry for entry in measurements if entry.is_silent],
        "clipped (runs of samples at full scale)": [entry for entry in measurements if entry.is_clipped],
        f"shorter than {min_seconds:g} s": [entry for entry in measurements if entry.seconds < min_seconds],
    }


def count_repeats(measurements: list[Measurement]) -> int:
    """Return how many recordings repeat an earlier one of their split sample for sample, without silent ones."""
    counts = Counter((entry.split, entry.digest) for entry in measurements if not entry.is_silent)
    return sum(count - 1 for count in counts.values())


def groups_across_splits(measurements: list[Measurement]) -> dict[str, list[str]]:
    """Return the groups that are in more than one split, with those splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in measurements:
        splits[entry.group].add(entry.split)
    return {group: sorted(found) for group, found in sorted(splits.items()) if len(found) > 1}


def duplicates_across_splits(corpus: Path, measurements: list[Measurement]) -> list[Pair]:
    """Return every pair of recordings of two splits that are one sound, by falling correlation."""
    parts: dict[str, list[Measurement]] = defaultdict(list)
    for entry in measurements:
        if not entry.is_silent:
            parts[entry.split].append(entry)
    exact: list[Pair] = []
    candidates = []
    for first, second in combinations(sorted(parts), 2):
        for one, other in _alike(parts[first], parts[second]) | _equal(parts[first], parts[second]):
            members = (one.split, one.key), (other.split, other.key)
            if one.digest == other.digest:
                exact.append(Pair(*members, exact=True, correlation=1.0))
            else:
                candidates.append(members)
    near = compare(corpus, sorted(candidates))
    return sorted([*exact, *near], key=lambda pair: (-pair.exact, -pair.correlation, pair.first, pair.second))


def _equal(first: list[Measurement], second: list[Measurement]) -> set[tuple[Measurement, Measurement]]:
    digests: dict[bytes, list[Measurement]] = defaultdict(list)
    for entry in second:
        digests[entry.digest].append(entry)
    return {(entry, other) for entry in first for other in digests[entry.digest]}


def _alike(first: list[Measurement], second: list[Measurement]) -> set[tuple[Measurement, Measurement]]:
    arrays = [
        (np.stack([entry.thumbnail for entry in part]), np.array([entry.seconds for entry in part]))
        for part in (first, second)
    ]
    pairs = alike(arrays[0][0], arrays[1][0], arrays[0][1], arrays[1][1])
    return {(first[one], second[other]) for one, other in pairs}
