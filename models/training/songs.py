"""Parts of rendered songs, drawn to be mixed: clips that share a `song` begin together and add up to it."""

from collections.abc import Sequence

import numpy as np

from models.corpus.clips import Clip
from models.corpus.relations import are_related

LEAST_PARTS = 2


class Songs:
    """The songs of a corpus with at least two parts.

    usable: (clips,) bool, which clips may be drawn.
    """

    def __init__(self, clips: Sequence[Clip], usable: np.ndarray) -> None:
        self._clips = clips
        parts: dict[str, list[int]] = {}
        for index in np.flatnonzero(usable).tolist():
            if clips[index].song:
                parts.setdefault(clips[index].song, []).append(index)
        self._songs = [found for found in parts.values() if len(found) >= LEAST_PARTS]

    def __len__(self) -> int:
        return len(self._songs)

    def draw(self, random: np.random.Generator) -> list[int]:
        """Draw two to all parts of a song, as places among the clips, none of a class related to another's; one part if
        all others are related to it."""
        song = self._songs[int(random.integers(len(self._songs)))]
        count = int(random.integers(LEAST_PARTS, len(song) + 1))
        chosen: list[int] = []
        for index in random.permutation(song).tolist():
            if len(chosen) < count and not any(self._are_related(index, other) for other in chosen):
                chosen.append(index)
        return chosen

    def _are_related(self, one: int, other: int) -> bool:
        return any(are_related(a, b) for a in self._clips[one].mids for b in self._clips[other].mids)
