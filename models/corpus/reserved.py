"""Source groups of the training split that are reserved for evaluation: training leaves them out.

The validation split has few groups of some classes that people ask for often: of dogs, engines and singing.
"""

import csv
from functools import cache
from pathlib import Path

RESERVED = Path(__file__).with_name("reserved.csv")


@cache
def reserved_groups() -> frozenset[str]:
    """Return the groups, as the shards name them."""
    with RESERVED.open(encoding="utf-8", newline="") as file:
        return frozenset(row["group"] for row in csv.DictReader(file))
