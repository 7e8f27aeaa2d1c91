"""The reporting mixtures, on which figures are published: drawn once and listed in `reporting.csv`.

All clips are of the validation split. Two sources of unrelated classes, from different source groups, at 0 dB over the
part where the target sounds; half of the rows last 2 s, half 4 s. Each row has up to four examples of the target's
class from other groups than the target's (the first is the one-example query), a clip of an absent class, and a
training clip of the class, for comparison. Source groups are split into two halves, one for choosing and one for
reporting: rows alternate between them, and any range of rows holds nearly all classes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import are_related
from models.validation import row_lists
from models.validation.rendering import FRAME, Groups, Mix, Sounds, mix_sources, random_start, sounding, usable

REPORTING = Path(__file__).with_name("reporting.csv")
ROWS = 1000
SEED = 2027
HALVES = ("choose", "report")
SECONDS = (2, 4)
EXAMPLES = 4
TRIES = 5000  # for a row, before the corpus is said to have too few sounds that go together
OVERLAP = 0.5  # share of the target's sounding part in which the interference must sound too
LOUDEST_RATIO = 10.0  # largest power of the interference's loudest frame over the target's


@dataclass(frozen=True)
class MixtureRow:
    """One row: clips by key, starts in samples at 32 kHz; `trained` is empty if the class has no training clip."""

    half: str
    label: str
    seconds: int
    target: str
    target_start: int
    interference: str
    interference_start: int
    examples: tuple[str, ...]
    absent: str
    trained: str


def read(path: Path = REPORTING) -> list[MixtureRow]:
    """Return the listed rows. Raises ValueError for another kind of file."""
    return row_lists.read(path, MixtureRow)


def write(rows: list[MixtureRow], path: Path) -> None:
    """Write rows as CSV."""
    row_lists.write(rows, path, MixtureRow)


def digest(path: Path = REPORTING) -> str:
    """Return a digest that identifies a list: figures of different lists cannot be compared row by row."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def render(row: MixtureRow, sounds: Sounds) -> Mix:
    """Render a row."""
    samples = row.seconds * RATE
    target = sounds.segment(row.target, row.target_start, samples)
    return mix_sources(target, sounds.segment(row.interference, row.interference_start, samples), sounding(target))


def are_unrelated(first: Clip, second: Clip) -> bool:
    """Return whether two clips are of unrelated classes and of different source groups."""
    return first.group != second.group and not any(are_related(one, two) for one in first.mids for two in second.mids)


def split(groups: Groups) -> dict[str, str]:
    """Assign each group to a half. A target needs a second group for its query: classes with fewer than four groups
    stay in one half, with every class that they share a group with; larger ones are split evenly."""
    half_of: dict[str, str] = {}
    blocks = _blocks({mid: set(names) for mid, names in groups.items() if 2 <= len(names) < 4})
    sizes = dict.fromkeys(HALVES, 0)
    for mids, names in sorted(blocks, key=lambda block: (-len(block[0]), sorted(block[1]))):
        half = min(HALVES, key=lambda half: sizes[half])
        sizes[half] += len(mids)
        half_of |= dict.fromkeys(names, half)
    # The rarest classes first; a single group of a class can only interfere, and goes to the smaller half.
    for _, of_class in sorted(groups.items(), key=lambda item: (len(item[1]) < 2, len(item[1]), item[0])):
        counts = {half: sum(half_of.get(name) == half for name in of_class) for half in HALVES}
        for name in sorted(of_class):
            if name not in half_of:
                half = min(HALVES, key=lambda half: (counts[half], list(half_of.values()).count(half)))
                half_of[name] = half
                counts[half] += 1
    return half_of


def _blocks(classes: dict[str, set[str]]) -> list[tuple[set[str], set[str]]]:
    """Return blocks of classes that share groups: (mids, groups)."""
    blocks: list[tuple[set[str], set[str]]] = []
    for mid, names in sorted(classes.items()):
        joined = [block for block in blocks if block[1] & names]
        blocks = [block for block in blocks if not block[1] & names]
        mids = {mid}.union(*(block[0] for block in joined))
        blocks.append((mids, names.union(*(block[1] for block in joined))))
    return blocks


def draw(clips: Clips, training: Clips, count: int = ROWS, seed: int = SEED) -> list[MixtureRow]:
    """Draw rows, target classes evenly within each half. Raises ValueError if a half has no class with two groups, or
    no sounds that go with a target."""
    groups = usable(clips)
    trained: dict[str, list[str]] = defaultdict(list)
    choosing = np.random.default_rng([seed, len(HALVES)])
    for mid, of_class in sorted(usable(training).items()):
        names = choosing.permutation(sorted(of_class))[:EXAMPLES]  # few, since all of them are decoded
        trained[mid] = [of_class[name][int(choosing.integers(len(of_class[name])))].key for name in names]
    half_of = split(groups)
    drawn = []
    for number, half in enumerate(HALVES):
        own = {
            mid: {name: of_class[name] for name in sorted(of_class) if half_of[name] == half}
            for mid, of_class in sorted(groups.items())
        }
        own = {mid: of_class for mid, of_class in own.items() if of_class}
        if not any(len(of_class) >= 2 for of_class in own.values()):
            raise ValueError("a class needs two source groups for a target and its query: this corpus is too small")
        rows = _Drawer(clips, own, trained, np.random.default_rng([seed, number])).rows(half)
        drawn.append([next(rows) for _ in range((count + 1 - number) // 2)])
    first, second = drawn
    return [(first, second)[at % 2][at // 2] for at in range(count)]


class _Drawer:
    """Draws the rows of one half from that half's clips."""

    def __init__(
        self, clips: Clips, groups: Groups, trained: dict[str, list[str]], random: np.random.Generator
    ) -> None:
        self._clips, self._groups, self._trained, self._random = clips, groups, trained, random
        self._sounds = Sounds(clips)

    def rows(self, half: str) -> Iterator[MixtureRow]:
        """Yield rows without end."""
        askable = sorted(mid for mid, of_class in self._groups.items() if len(of_class) >= 2)
        turns: dict[str, list[str]] = {mid: [] for mid in askable}
        seconds = 0
        while True:
            for mid in self._random.permutation(askable):
                if not turns[mid]:  # use every group of a class before repeating one
                    turns[mid] = self._random.permutation(list(self._groups[mid])).tolist()
                yield self._row(half, mid, turns[mid].pop(), SECONDS[seconds % 2])
                seconds += 1

    def _row(self, half: str, mid: str, group: str, seconds: int) -> MixtureRow:
        samples = seconds * RATE
        for _ in range(TRIES):
            target = self._one(self._groups[mid][group])
            target_start = random_start(self._clips.waveform(target), samples, self._random)
            sound = self._sounds.segment(target.key, target_start, samples)
            three = (target, interference := self._other(), absent := self._other())
            if not sound.any() or not all(are_unrelated(one, two) for one, two in combinations(three, 2)):
                continue
            start = self._overlapping(sound, interference, samples)
            if start is None:
                continue
            pool = self._trained[mid]
            return MixtureRow(
                half,
                target.label,
                seconds,
                target.key,
                target_start,
                interference.key,
                start,
                tuple(self._examples(mid, group)),
                absent.key,
                pool[int(self._random.integers(len(pool)))] if pool else "",
            )
        name = self._groups[mid][group][0].label
        raise ValueError(
            f"half {half!r} has no two sounds of other classes, unrelated to {name} and to each other, to be its "
            "interference and absent: this corpus is too small"
        )

    def _examples(self, mid: str, target_group: str) -> list[str]:
        """Draw examples, one from each group before a second one of any."""
        others = [[clip.key for clip in clips] for name, clips in self._groups[mid].items() if name != target_group]
        others = [self._random.permutation(others[at]).tolist() for at in self._random.permutation(len(others))]
        rounds = range(max(len(keys) for keys in others))
        return [keys[turn] for turn in rounds for keys in others if turn < len(keys)][:EXAMPLES]

    def _one(self, clips: list[Clip]) -> Clip:
        return clips[int(self._random.integers(len(clips)))]

    def _other(self) -> Clip:
        of_class = list(self._groups.values())[int(self._random.integers(len(self._groups)))]
        return self._one(list(of_class.values())[int(self._random.integers(len(of_class)))])

    def _overlapping(self, target: np.ndarray, clip: Clip, samples: int) -> int | None:
        """Return a start at which the interference overlaps the target without masking it; None if none is found."""
        over = sounding(target)
        for _ in range(8):
            start = random_start(self._clips.waveform(clip), samples, self._random)
            sound = self._sounds.segment(clip.key, start, samples)
            if not sound.any() or (sounding(sound) & over).sum() < OVERLAP * over.sum():
                continue
            mix = mix_sources(target, sound, over)
            loudest = [np.square(part).reshape(-1, FRAME).sum(1).max() for part in (mix.target, mix.interference)]
            if loudest[1] <= LOUDEST_RATIO * loudest[0]:
                return start
        return None
