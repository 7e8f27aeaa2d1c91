"""Splits by file names."""

import re
from pathlib import Path

_SUFFIX = re.compile(r"_segments$|[_-]part\d+$|[_-]\d+$")
_KNOWN = {
    "balanced_train": "train",
    "unbalanced_train": "train",
    "validation": "valid",
    "val": "valid",
    "eval": "test",
    "evaluation": "test",
}


def split_of(path: Path) -> str:
    """`balanced_train_segments.csv` -> train, `eval.h5` -> test, `valid.csv` -> valid; other names are the split."""
    stem = path.stem.lower()
    while (shorter := _SUFFIX.sub("", stem)) != stem and shorter:
        stem = shorter
    return canonical_split(stem)


def canonical_split(name: str) -> str:
    """Return the canonical name of a split."""
    return _KNOWN.get(name.lower(), name.lower())
