"""Vocals: singing clips of a corpus, phrase after phrase over a song."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.clips import RATE
from models.corpus.decoded import decode
from models.corpus.relations import with_descendants
from models.corpus.reserved import reserved_groups
from models.corpus.sources.formats import open_source, splits_of
from models.corpus.sources.recordings import Recording
from models.labels import find

SINGING = "Singing"
SHORTEST = 0.5  # seconds of a phrase
REPEATS = 0.5  # share of phrases that are the one before again


@dataclass(frozen=True)
class Voice:
    """Phrases of one source group: samples int16 at 32 kHz."""

    group: str
    source: dict[str, Any]
    phrases: tuple[np.ndarray, ...]

    def sing(self, frames: int, bar: float, random: np.random.Generator) -> np.ndarray:
        """Return a part (frames,) float32: phrases that begin on bars of `bar` seconds and do not overlap."""
        part = np.zeros(frames, np.float32)
        at, phrase = int(random.integers(0, 2)) * bar, None
        while round(at * RATE) < frames - round(SHORTEST * RATE):
            if phrase is None or random.random() >= REPEATS:
                phrase = self.phrases[int(random.integers(len(self.phrases)))]
            first = round(at * RATE)
            kept = phrase[: frames - first].astype(np.float32) / 32768
            part[first : first + len(kept)] = kept
            at += bar * (int(len(phrase) / RATE / bar) + 1 + int(random.integers(0, 2)))
        return part


def voices(corpus: Path) -> tuple[Voice, ...]:
    """Return the voices of a corpus's training split, without those reserved for evaluation."""
    wanted = with_descendants([find(SINGING).mid])
    found: dict[str, list[tuple[Recording, np.ndarray]]] = {}
    for row in open_source(corpus, "train"):
        # Choirs of sound banks are instruments, in a key of their own.
        sung = isinstance(row, Recording) and row.kind != "instrument" and wanted.intersection(row.mids)
        if isinstance(row, Recording) and sung and row.group not in reserved_groups():
            recording, samples, _ = decode(row)
            if recording is not None and len(samples) >= SHORTEST * RATE:
                found.setdefault(row.group, []).append((row, samples))
    return tuple(
        Voice(group, rows[0][0].source, tuple(samples for _, samples in rows)) for group, rows in sorted(found.items())
    )


def validation_groups(corpus: Path) -> frozenset[str]:
    """Return the source groups of a corpus's validation split."""
    if "valid" not in splits_of(corpus):
        return frozenset()
    return frozenset(row.group for row in open_source(corpus, "valid") if isinstance(row, Recording))
