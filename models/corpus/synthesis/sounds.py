"""Synthesised sounds as rows of a pack: each is one source, such as one siren, and its pieces are takes of it.

A source depends on the seed and its number alone. Its takes share a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.corpus.augmentation import in_rooms, rooms
from models.corpus.clips import RATE
from models.corpus.packing import Encoded, Settings, encode_piece
from models.corpus.sources.recordings import Fault, key_of
from models.corpus.synthesis.catalogue import CATALOGUE
from models.corpus.synthesis.elements import LOWEST_HZ, Random, band, noise
from models.labels import find

TAKES = 2
SHORTEST = 3.0  # seconds of a take
ROOM_SHARE, FAR_SHARE = 0.4, 0.3
HISS_DB = (-70, -45)  # of a recorder, below the sound
PEAKS = (0.1, 0.95)
LICENCE = "CC0-1.0"
FULL_SCALE = 32767


@dataclass(frozen=True)
class Sounds:
    """The split `train` of a number of sources; rows are their numbers, classes take turns."""

    seed: int
    count: int
    name: str = "sounds"
    split: str = "train"
    root: Path = Path("/")

    def files(self) -> Iterator[Path]:
        """Yield nothing: no files are read."""
        return iter(())

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def about(self) -> dict[str, Any]:
        """Return what the rows depend on."""
        return {"seed": self.seed, "sources": self.count, "classes": [label for label, _ in CATALOGUE]}

    def encode(self, row: int, settings: Settings) -> Encoded:
        """Return the takes of a source, encoded. Silent ones are left out, and are a fault."""
        source = f"{self.seed}-{row:06d}"
        label, maker = CATALOGUE[row % len(CATALOGUE)]
        pieces, faults = [], []
        for take, sound in enumerate(self.render(row, settings.max_seconds)):
            samples = (sound * FULL_SCALE).round().astype(np.int16)
            if not samples.any():
                faults.append(Fault(source, "silent recording"))
                continue
            said = {
                "labels": [label],
                "mids": [find(label).mid],
                "seconds": round(len(samples) / RATE, 3),
                "group": f"synthesis/{source}",
                "kind": "effect",
                "package": "synthesis",
                "path": f"{maker.__module__.rpartition('.')[2]}/{maker.__name__}/{source}",
                "license": LICENCE,
            }
            pieces.append((key_of(f"sound-{source}-{take}"), encode_piece(samples, settings.format), said))
        return Encoded(pieces, 0.0, faults)

    def render(self, number: int, seconds: float) -> list[np.ndarray]:
        """Return TAKES takes (n,) of a source, float32 in [-1, 1], of `seconds` at most."""
        random = np.random.default_rng([self.seed, number])
        _, maker = CATALOGUE[number % len(CATALOGUE)]
        length = round(random.uniform(min(SHORTEST, seconds), seconds) * RATE)
        sound = record(maker(TAKES * length, random), random)
        return [take.astype(np.float32) for take in np.split(sound, TAKES)]


def record(sound: np.ndarray, random: Random) -> np.ndarray:
    """Return a sound (n,) as a microphone hears it: in a room or far away, at times, with hiss, at some level."""
    sound = band(sound, LOWEST_HZ)
    if random.random() < ROOM_SHARE:
        heard = in_rooms(torch.from_numpy(sound.astype(np.float32))[None], rooms(1, RATE, random))
        sound = heard[0].numpy().astype(np.float64)
    if random.random() < FAR_SHARE:
        sound = band(sound, high=random.uniform(2500, 9000), order=1)
    level = np.sqrt(np.square(sound).mean())
    hiss = noise(len(sound), random, -2) * level * 10 ** (random.uniform(*HISS_DB) / 20)
    peak = np.abs(sound).max()
    return (sound + hiss) / max(float(np.abs(sound + hiss).max()), 1e-9) * random.uniform(*PEAKS) * (peak > 0)
