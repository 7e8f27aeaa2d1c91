"""Band mixtures: excerpts of scores with one instrument as the target, drawn once and listed in `bands.csv`.

A row names a score, where its excerpt of 4 s begins, the class of the target instrument, and the clip of the corpus's
validation split that is its query. Levels are those of the score. The target sounds in half of the excerpt or more, at
most 20 dB below the rest; no other instrument in the band is of its class or a related one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.corpus.relations import are_related
from models.corpus.rendering.general_midi import OTHER
from models.corpus.rendering.scores import Score, midi_files, read
from models.corpus.rendering.synthesizer import Synthesizer
from models.labels import find
from models.validation import row_lists
from models.validation.rendering import PEAK, Groups, Mix, sounding

BANDS = Path(__file__).with_name("bands.csv")
ROWS = 120
SEED = 2029
SECONDS = 4.0
EXCERPTS = 3  # candidates in each score
LATEST = 240.0  # seconds: some scores repeat for half an hour
MOST_OF_SCORE = 4  # rows
LEAST_PARTS = 3
LOWEST_DB = -20.0  # of a target below the rest
AUDIBLE_DB = -30.0  # lowest level of a part, relative to the band, that counts as playing
SOUNDING_SHARE = 0.5


@dataclass(frozen=True)
class Row:
    """An instrument to separate; `start` in seconds, `digest` of the score's file, `query` a clip by key."""

    score: str
    digest: str
    start: float
    label: str
    query: str


def read_rows(path: Path = BANDS) -> list[Row]:
    """Return the listed rows. Raises ValueError for another kind of file."""
    return row_lists.read(path, Row)


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows as CSV."""
    row_lists.write(rows, path, Row)


class Bands:
    """Scores by name, and their rendered excerpts; the last one is cached, since rows of an excerpt are adjacent."""

    def __init__(self, folders: tuple[Path, ...], synthesizer: Synthesizer, said: Callable[[str], None]) -> None:
        self._paths = {path.name: path for path in midi_files(folders)}
        self._synthesizer, self._said = synthesizer, said
        self._scores: dict[str, Score] = {}
        self._last: tuple[str, float, dict[str, np.ndarray]] = ("", 0.0, {})

    def scores(self) -> Iterator[tuple[str, Score]]:
        """Yield all scores that can be read."""
        for name in self._paths:
            try:
                yield name, self.score(name)
            except ValueError as fault:
                self._said(f"left out: {fault}")

    def score(self, name: str) -> Score:
        """Return a score by name. Raises FileNotFoundError if there is none, ValueError if it cannot be read."""
        if name not in self._paths:
            raise FileNotFoundError(f"there is no score {name} in the folders of scores")
        if name not in self._scores:
            self._scores[name] = read(self._paths[name])
        return self._scores[name]

    def parts(self, name: str, start: float) -> dict[str, np.ndarray]:
        """Return the waveform (n,) of every audible instrument of an excerpt, by label."""
        if self._last[:2] != (name, start):
            excerpt = self.score(name).excerpt(start, SECONDS)
            rendered = {label: self._synthesizer.render(part, SECONDS) for label, part in excerpt.items()}
            self._last = name, start, {label: sound for label, sound in rendered.items() if sound.any()}
        return self._last[2]

    def render(self, row: Row) -> Mix:
        """Render a row. Raises ValueError if the score differs from the listed one."""
        if self.score(row.score).digest != row.digest:
            raise ValueError(f"{row.score} differs from the listed score: another digest")
        parts = self.parts(row.score, row.start)
        if row.label not in parts:
            raise ValueError(f"{row.score}: no {row.label} at {row.start} s; was it listed with another bank?")
        target = parts[row.label]
        rest = np.stack([sound for label, sound in parts.items() if label != row.label]).sum(axis=0, dtype=np.float32)
        gain = np.float32(min(1.0, PEAK / np.abs(target + rest).max()))
        return Mix((target + rest) * gain, target * gain, np.asarray(rest * gain))


def askable(parts: dict[str, np.ndarray]) -> list[str]:
    """Return the instruments of an excerpt that qualify as targets."""
    energies = {label: float(np.square(sound, dtype=np.float64).sum()) for label, sound in parts.items()}
    whole = float(np.square(np.sum(list(parts.values()), axis=0), dtype=np.float64).sum())
    playing = [label for label in parts if energies[label] > whole * 10 ** (AUDIBLE_DB / 10)]
    if len(playing) < LEAST_PARTS:
        return []
    mids = {label: find(label).mid for label in parts if label != OTHER}
    fair = []
    for label, mid in mids.items():
        rest = np.sum([sound for name, sound in parts.items() if name != label], axis=0, dtype=np.float64)
        loud = energies[label] > np.square(rest).sum() * 10 ** (LOWEST_DB / 10)
        alone = not any(are_related(mid, other) for name, other in mids.items() if name != label)
        if loud and alone and sounding(parts[label]).mean() >= SOUNDING_SHARE:
            fair.append(label)
    return fair


def draw(bands: Bands, queries: Groups, count: int = ROWS, seed: int = SEED) -> list[Row]:
    """Draw rows; queries: clips by group by class. Raises ValueError where there are too few."""
    random = np.random.default_rng(seed)
    candidates = []
    for name, score in bands.scores():
        for start in random.uniform(0, max(0.0, min(score.seconds, LATEST) - SECONDS), EXCERPTS).round(3).tolist():
            labels = [label for label in askable(bands.parts(name, start)) if find(label).mid in queries]
            candidates += [Row(name, score.digest, start, label, "") for label in labels]
    rows = choose(candidates, count)
    turns: dict[str, list[str]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups = queries[find(row.label).mid]
        if not turns[row.label]:  # use every group of a class before repeating one
            turns[row.label] = random.permutation(sorted(groups)).tolist()
        clips = groups[turns[row.label].pop()]
        rows[place] = replace(row, query=clips[int(random.integers(len(clips)))].key)
    return rows


def choose(candidates: list[Row], count: int) -> list[Row]:
    """Choose rows evenly over classes, then scores, each class once for each score, since its excerpts are similar.

    Raises ValueError if there are too few.
    """
    left, rows = list(candidates), []
    of_class, of_score = Counter(), Counter()
    for _ in range(count):
        if not left:
            raise ValueError(f"the scores have {len(rows)} instruments that qualify as targets, not {count}")
        row = min(left, key=lambda row: (of_class[row.label], row.label, of_score[row.score]))
        rows.append(row)
        of_class[row.label] += 1
        of_score[row.score] += 1
        full = of_score[row.score] >= MOST_OF_SCORE
        left = [other for other in left if other.score != row.score or not (full or other.label == row.label)]
    return sorted(rows, key=lambda row: (row.score, row.start, row.label))
