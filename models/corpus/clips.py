"""Decoded labelled clips in one flat int16 array, so that training needs no decoder."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.labels import ontology

RATE = 32_000


@dataclass(frozen=True)
class Clip:
    """One labelled clip; `start` and `frames` are its place in the flat array.

    mids: the classes of its labels, which are incomplete; empty for an unlabelled clip.
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
        """Return the clip, float32 in [-1, 1]."""
        return self.samples[clip.start : clip.start + clip.frames].astype(np.float32) / 32768

    def join(self, other: "Clips") -> "Clips":
        """Return these clips followed by others, in memory."""
        begin = len(self.samples)
        moved = [replace(clip, start=clip.start + begin) for clip in other.clips]
        return Clips(np.concatenate([self.samples, other.samples]), self.clips + moved)

    def without(self, mids: frozenset[str]) -> "Clips":
        """Return the same array with the clips that are labelled with none of the classes."""
        return Clips(self.samples, [clip for clip in self.clips if not mids.intersection(clip.mids)])

    def without_groups(self, groups: frozenset[str]) -> "Clips":
        """Return the same array without the clips of some source groups."""
        return Clips(self.samples, [clip for clip in self.clips if clip.group not in groups])
