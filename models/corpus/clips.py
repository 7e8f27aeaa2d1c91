"""Labelled clips in one flat int16 array that training can index freely: no decoder runs while training."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.labels import ontology

RATE = 32_000


@dataclass(frozen=True)
class Clip:
    """One labelled clip; `start` and `frames` are its place in the flat array.

    mids: the classes that it is labelled with, never all that are true of it; none if nobody labelled it.
    """

    key: str
    start: int
    frames: int
    mids: tuple[str, ...]
    group: str
    kind: str
    source: dict[str, Any]  # package, path, licence: what attribution needs

    @property
    def mid(self) -> str:
        """The first class."""
        return self.mids[0]

    @property
    def label(self) -> str:
        """The first class's name."""
        return ontology()[self.mid].name


@dataclass(frozen=True)
class Clips:
    """Decoded clips: `samples` is int16 at 32 kHz, all clips end to end."""

    samples: np.ndarray
    clips: list[Clip]

    def waveform(self, clip: Clip) -> np.ndarray:
        """The clip, float32 in [-1, 1]."""
        return self.samples[clip.start : clip.start + clip.frames].astype(np.float32) / 32768

    def join(self, other: "Clips") -> "Clips":
        """These clips and others after them, in memory."""
        begin = len(self.samples)
        moved = [replace(clip, start=clip.start + begin) for clip in other.clips]
        return Clips(np.concatenate([self.samples, other.samples]), self.clips + moved)

    def without(self, mids: frozenset[str]) -> "Clips":
        """The same array, and of its clips those that are labelled with none of the classes."""
        return Clips(self.samples, [clip for clip in self.clips if not mids.intersection(clip.mids)])
