"""Decoded labelled clips in one flat int16 array, so that training needs no decoder."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.labels import ontology

RATE = 32_000
ENERGY_HOP = RATE // 20  # samples of one step of a clip's energies
_THINNED = 8  # energies are of every eighth sample


@dataclass(frozen=True, slots=True)
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
    song: str = ""  # shared by the parts of one rendered song, which add up to it

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
    """Decoded clips: `samples` is int16 at 32 kHz, one clip after another.

    energies: of each ENERGY_HOP of `samples`, as `energies_of` has them, where clips begin at multiples of it; or None.
    """

    samples: np.ndarray
    clips: list[Clip]
    energies: np.ndarray | None = None

    def waveform(self, clip: Clip) -> np.ndarray:
        """Return the clip, float32 in [-1, 1]."""
        return self.samples[clip.start : clip.start + clip.frames].astype(np.float32) / 32768

    def energy(self, clip: Clip) -> np.ndarray:
        """Return the clip's energy in each step of ENERGY_HOP samples, float32."""
        if self.energies is None:
            return energies_of(self.samples[clip.start : clip.start + clip.frames])
        first = clip.start // ENERGY_HOP
        return self.energies[first : first + -(-clip.frames // ENERGY_HOP)]

    def join(self, other: "Clips") -> "Clips":
        """Return these clips followed by others, in memory."""
        padding = np.zeros(-len(self.samples) % ENERGY_HOP, np.int16)
        begin = len(self.samples) + len(padding)
        moved = [replace(clip, start=clip.start + begin) for clip in other.clips]
        tables = self.energies, other.energies
        energies = None if tables[0] is None or tables[1] is None else np.concatenate([tables[0], tables[1]])
        return Clips(np.concatenate([self.samples, padding, other.samples]), self.clips + moved, energies)

    def without(self, mids: frozenset[str]) -> "Clips":
        """Return the same array with the clips that are labelled with none of the classes."""
        return replace(self, clips=[clip for clip in self.clips if not mids.intersection(clip.mids)])

    def without_groups(self, groups: frozenset[str]) -> "Clips":
        """Return the same array without the clips of some source groups."""
        return replace(self, clips=[clip for clip in self.clips if clip.group not in groups])


def energies_of(samples: np.ndarray) -> np.ndarray:
    """Return the energy of samples (n,) int16 in each step of ENERGY_HOP, from every eighth sample; float32."""
    thinned = samples[::_THINNED].astype(np.float32) / 32768
    steps = np.pad(np.square(thinned), (0, -len(thinned) % (ENERGY_HOP // _THINNED)))
    return _THINNED * steps.reshape(-1, ENERGY_HOP // _THINNED).sum(1)
