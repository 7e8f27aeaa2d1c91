"""Zero-shot evaluation: the gain of unseen (held-out) classes beside seen ones, on the same mixtures.

Every mixture holds a clip of an unseen class and one of a seen class at equal energy over the segment. Both are
separated, each with a clip of its class from another source group as query and, as the paper trains and tests, with the
source's own segment. The two gains are therefore of the same mixtures. Seen sources are of the validation split; unseen
ones may be of either split, since they were not trained on, except for a comparison with a model that was trained on
them: then only the validation split is fair.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch

from models.corpus.clips import RATE, Clip, Clips
from models.errors import CheckpointInvalid
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reporting_mixtures import are_unrelated
from models.evaluation.reports.bootstrap import Estimate, TwoLevel, by_class
from models.labels import ontology
from models.validation.metrics import improvements
from models.validation.rendering import (
    FRAME,
    LEAST_ENERGY,
    SHORTEST,
    Groups,
    Mix,
    Sounds,
    mix_sources,
    random_start,
    sounding,
    stack,
)

ROWS = 400
SECONDS = 2
CANDIDATES = 8  # seen clips to choose from: the one whose sounding part is about as long as the unseen one's
SIDES = ("unseen", "seen")
OWN = "_own"  # suffix of figures with the source's own segment as query
FIGURES = ("si_sdri", "sdri", "wrong")


@dataclass(frozen=True)
class Pair:
    """A mixture of an unseen and a seen source; clips by key, starts in samples at 32 kHz, `mid` the unseen class."""

    mid: str
    seconds: float
    unseen: str
    unseen_start: int
    seen: str
    seen_start: int
    unseen_query: str
    seen_query: str

    @property
    def label(self) -> str:
        """The unseen class's name."""
        return ontology()[self.mid].name


@dataclass(frozen=True)
class PairFigures:
    """`values`: "unseen/si_sdri", "seen_own/sdri" and the like, and "gap/si_sdri", unseen - seen; each (rows,), NaN
    where a query could not be made. `groups`: the unseen sources' groups."""

    rows: list[Pair]
    groups: list[str]
    values: dict[str, np.ndarray]

    @property
    def labels(self) -> list[str]:
        return [row.label for row in self.rows]


@dataclass(frozen=True)
class Result:
    """Estimates over all rows by figure, and of each unseen class."""

    means: dict[str, Estimate]
    classes: dict[str, dict[str, Estimate]]


def classes_never_seen(config: dict) -> frozenset[str]:
    """Return the classes that no stage of a model was trained on, or else its separator was not.

    Raises CheckpointInvalid if its config names none.
    """
    mids = config.get("held_out") or config.get("separator_held_out")
    if not mids:
        missing = "was trained on every class" if "held_out" in config else "does not list its held-out classes"
        raise CheckpointInvalid(f"model {config.get('name')!r} {missing}: `held_out` in its config must name them")
    return frozenset(mids)


def draw(
    clips_valid: Clips,
    clips_train: Clips | None,
    held_out: Iterable[str],
    count: int = ROWS,
    seconds: float = SECONDS,
    seed: int = 2028,
) -> list[Pair]:
    """Draw rows, unseen classes evenly. clips_train: None to use the validation split alone.

    Raises ValueError if no unseen class, or no seen one, has clips of two source groups.
    """
    unseen_mids = frozenset(held_out)
    splits = [clips_valid] if clips_train is None else [clips_valid, clips_train]
    sounds, random = Sounds(*splits), np.random.default_rng(seed)
    unseen = _askable(splits, lambda clip: next((mid for mid in clip.mids if mid in unseen_mids), None))
    seen = _askable([clips_valid], lambda clip: None if unseen_mids & set(clip.mids) else clip.mid)
    if not unseen or not seen:
        which = "held-out" if not unseen else "seen"
        raise ValueError(f"no {which} class has clips of two source groups in the corpus, as queries need")
    drawer = _Drawer(sounds, unseen, seen, round(seconds * RATE / FRAME) * FRAME, random)
    mids = sorted(unseen)
    return [drawer.row(mids[at % len(mids)]) for at in range(count)]


def classes_without_rows(clips: Sequence[Clips], held_out: Iterable[str], rows: Sequence[Pair]) -> list[str]:
    """Return the names of held-out classes with clips of one group only, which no row holds."""
    there = {mid for split in clips for clip in split.clips for mid in clip.mids} & set(held_out)
    return sorted(ontology()[mid].name for mid in there - {row.mid for row in rows})


def digest(rows: Sequence[Pair]) -> str:
    """Return a digest that identifies a list of rows."""
    return hashlib.sha256(repr([astuple(row) for row in rows]).encode()).hexdigest()[:16]


def measure(
    subject: ModelUnderTest, rows: Sequence[Pair], sounds: Sounds, advance: Callable[[int], None] = lambda _: None
) -> PairFigures:
    """Return the figures of both sources of every row. advance: called with the number of rows of each batch."""
    query_kinds = [side + kind for kind in ("", OWN) for side in SIDES]
    columns: dict[str, list[float]] = {f"{side}/{figure}": [] for side in query_kinds for figure in FIGURES}
    cached: dict[str, torch.Tensor] = {}

    def query(key: str) -> torch.Tensor:
        if key not in cached:
            cached[key] = subject.query(sounds.waveform(key))
        return cached[key]

    size = subject.rows_at_once(rows[0].seconds) if rows else 1
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        mixtures, *sources = stack([render(row, sounds) for row in batch])
        queries = [torch.stack([query(getattr(row, f"{side}_query")) for row in batch]) for side in SIDES]
        queries += [torch.stack([subject.embed(segment.numpy()) for segment in of_side]) for of_side in sources]
        estimates = subject.estimates(mixtures, queries)
        sought = zip(query_kinds, estimates, 2 * sources, 2 * sources[::-1], strict=True)
        for side, estimate, source, other in sought:
            gained = improvements(estimate, mixtures, source, other)
            for figure in FIGURES:
                columns[f"{side}/{figure}"] += gained[figure].tolist()
        advance(len(batch))
    values = {name: np.array(column) for name, column in columns.items()}
    for kind in ("", OWN):
        for figure in FIGURES:
            values[f"gap{kind}/{figure}"] = values[f"unseen{kind}/{figure}"] - values[f"seen{kind}/{figure}"]
    return PairFigures(list(rows), [sounds.clip(row.unseen).group for row in rows], values)


def render(row: Pair, sounds: Sounds) -> Mix:
    """Render a row: the unseen source is the target, the seen one the interference."""
    samples = round(row.seconds * RATE / FRAME) * FRAME
    return mix_sources(
        sounds.segment(row.unseen, row.unseen_start, samples), sounds.segment(row.seen, row.seen_start, samples)
    )


def summarise(measured: PairFigures) -> Result:
    """Return means over rows with queries for both sources, with intervals over unseen classes, then their groups."""
    values = drop_incomplete(measured.values)
    bootstrap = TwoLevel(measured.labels, measured.groups)
    classes = {
        label: {name: of_class.mean(column[there]) for name, column in values.items()}
        for label, there, of_class in by_class(measured.labels, measured.groups)
    }
    return Result({name: bootstrap.mean(column) for name, column in values.items()}, classes)


def drop_incomplete(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Set every column of a row to NaN if any is."""
    missing = np.isnan(np.stack(list(values.values()))).any(0)
    return {name: np.where(missing, np.nan, column) for name, column in values.items()}


def _askable(splits: Sequence[Clips], class_of: Callable[[Clip], str | None]) -> Groups:
    """Return clips that are long and loud enough by group by class, of classes with two groups or more."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for split in splits:
        for clip in split.clips:
            mid = class_of(clip)
            if mid is None or clip.frames < SHORTEST * RATE:
                continue
            if np.square(split.waveform(clip)).sum() > LEAST_ENERGY:
                groups[mid][clip.group].append(clip)
    return {mid: dict(of_class) for mid, of_class in sorted(groups.items()) if len(of_class) >= 2}


class _Drawer:
    def __init__(self, sounds: Sounds, unseen: Groups, seen: Groups, samples: int, random: np.random.Generator) -> None:
        self._sounds, self._unseen, self._seen = sounds, unseen, seen
        self._samples, self._random = samples, random
        self._turns: dict[str, list[str]] = defaultdict(list)

    def row(self, mid: str) -> Pair:
        """Draw a mixture for an unseen class; its groups are used evenly."""
        if not self._turns[mid]:
            self._turns[mid] = self._random.permutation(list(self._unseen[mid])).tolist()
        group = self._turns[mid].pop()
        while True:
            unseen = self._one(self._unseen[mid][group])
            unseen_start, unseen_share = self._place(unseen)
            candidates = []
            for _ in range(CANDIDATES):
                seen_mid = self._one(list(self._seen))
                seen_group = self._one(list(self._seen[seen_mid]))
                seen = self._one(self._seen[seen_mid][seen_group])
                start, share = self._place(seen)
                if share and are_unrelated(unseen, seen):
                    candidates.append((seen_mid, seen, start, share))
            if candidates and unseen_share:
                break
        # Separating a click from a drone is easy: both should sound about as long.
        seen_mid, seen, seen_start, _ = min(candidates, key=lambda candidate: abs(candidate[3] - unseen_share))
        return Pair(
            mid,
            self._samples / RATE,
            unseen.key,
            unseen_start,
            seen.key,
            seen_start,
            self._query(self._unseen[mid], group),
            self._query(self._seen[seen_mid], seen.group),
        )

    def _one(self, options: Sequence):
        return options[int(self._random.integers(len(options)))]

    def _query(self, of_class: dict[str, list[Clip]], group: str) -> str:
        return self._one(of_class[self._one([name for name in of_class if name != group])]).key

    def _place(self, clip: Clip) -> tuple[int, float]:
        """Return where the clip's segment begins, and the share of the segment in which it sounds."""
        start = random_start(self._sounds.waveform(clip.key), self._samples, self._random)
        segment = self._sounds.segment(clip.key, start, self._samples)
        return start, float(sounding(segment).mean()) if segment.any() else 0.0
