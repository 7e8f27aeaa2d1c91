"""The validation mixtures: drawn once and listed in `validation.csv`, the same for every model.

A row names clips by key and 2 s segments by their first sample at 32 kHz (negative: the clip begins later in the
segment). The target's class and the interference's are unrelated, both have the same energy over the segment, and the
query is a clip of the target's class from another source group. All clips are of the validation split, which is not
trained on. `absent` is a clip of a class that is unrelated to both sources.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import are_related
from models.validation import row_lists
from models.validation.rendering import Sounds, random_start, usable

VALIDATION = Path(__file__).with_name("validation.csv")
SEGMENT = 2 * RATE
ROWS = 300
TRIES = 100  # draws for each row before giving up


@dataclass(frozen=True)
class Row:
    """One mixture to separate: clips by key, offsets in samples at 32 kHz."""

    target: str
    target_start: int
    interference: str
    interference_start: int
    query: str
    absent: str
    label: str


@dataclass(frozen=True)
class Mixture:
    """A rendered row: float32 (64 000,) at 32 kHz, and the whole clips of the queries."""

    row: Row
    mixture: np.ndarray
    target: np.ndarray
    query: np.ndarray
    absent: np.ndarray


def read(path: Path = VALIDATION) -> list[Row]:
    """Return the listed rows. Raises ValueError for another kind of file."""
    return row_lists.read(path, Row)


def render(rows: list[Row], clips: Clips) -> Iterator[Mixture]:
    """Render each row: both sources at equal energy and the target's level, scaled down only where they would clip."""
    sounds = Sounds(clips)
    for row in rows:
        target = sounds.segment(row.target, row.target_start, SEGMENT)
        interference = sounds.segment(row.interference, row.interference_start, SEGMENT)
        interference = interference * np.sqrt(np.square(target).sum() / np.square(interference).sum())
        gain = min(1.0, 0.99 / np.abs(target + interference).max())
        yield Mixture(
            row,
            (target + interference) * gain,
            target * gain,
            sounds.waveform(row.query),
            sounds.waveform(row.absent),
        )


def draw(clips: Clips, count: int = ROWS, seed: int = 2026) -> list[Row]:
    """Draw rows, target classes evenly, from clips whose class has two source groups or more.

    Raises ValueError if there is no such class, or if too few classes are unrelated."""
    random = np.random.default_rng(seed)
    groups = usable(clips)
    askable = [mid for mid in groups if len(groups[mid]) >= 2]

    def choose(options: list) -> int:
        return int(random.integers(len(options)))

    def clip_of(mid: str) -> Clip:
        group = list(groups[mid].values())
        group = group[choose(group)]
        return group[choose(group)]

    def start(clip: Clip) -> int:
        return random_start(clips.waveform(clip), SEGMENT, random)

    rows = []
    if not askable:
        raise ValueError("no class has clips of two source groups, as targets and their queries need")
    for _ in range(count * TRIES):
        if len(rows) == count:
            break
        mid = askable[len(rows) % len(askable)]
        target = clip_of(mid)
        other = list(groups)[choose(list(groups))]
        absent = list(groups)[choose(list(groups))]
        if are_related(mid, other) or are_related(mid, absent) or are_related(other, absent):
            continue
        queries = [clip for name, group in groups[mid].items() if name != target.group for clip in group]
        interference, query = clip_of(other), queries[choose(queries)]
        rows.append(
            Row(
                target.key,
                start(target),
                interference.key,
                start(interference),
                query.key,
                clip_of(absent).key,
                target.label,
            )
        )
    if len(rows) < count:
        raise ValueError("too few classes are unrelated to one another: two in a mixture and a third that is absent")
    return rows


def write(rows: list[Row], path: Path = VALIDATION) -> None:
    """Write rows as CSV."""
    row_lists.write(rows, path, Row)
