"""Training examples: mixtures of clips of different classes, each asked with several queries.

Sources stay apart as int16 crops until they are spectra: mixing, levels and equalising are products there, so that
an example costs little more than its STFT.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models import spectrum
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import related, siblings
from models.training.variety import SPEEDS, at_speed, filter_curve, in_room


@dataclass(frozen=True)
class Recipe:
    """How examples are made; all shares are probabilities.

    mixtures: mixtures a batch, each asked `queries` times.
    interference_db: a source's energy against the first one's, over the whole segment.
    """

    mixtures: int = 16
    queries: int = 2
    seconds: float = 2.0
    interference_db: tuple[float, float] = (-8.0, 8.0)
    third_source: float = 0.2
    single_source: float = 0.04
    absent: float = 0.15
    hard_negative: float = 0.1
    other_group: float = 0.65
    layered: float = 0.1
    room: float = 0.1
    filtered: float = 0.7
    class_power: float = 0.35  # classes are drawn by (number of groups) ** power


@dataclass(frozen=True)
class Batch:
    """mixture: complex (mixtures, frames, bins); targets: complex (rows, frames, bins), zero where absent;
    queries: (rows, D); rows are mixtures x queries, mixture by mixture."""

    mixture: Tensor
    targets: Tensor
    queries: Tensor


def _loudness(samples: np.ndarray) -> float:
    """Of int16 samples, from every eighth of them."""
    return float(np.square(samples[::8], dtype=np.float32).sum())


class Mixer:
    """Draws batches from decoded clips and their cached query embeddings (clips, versions, D)."""

    def __init__(
        self, clips: Clips, embeddings: np.ndarray, recipe: Recipe, stft: tuple[int, int, int], seed: int = 0
    ) -> None:
        self.clips, self.embeddings, self.recipe = clips, embeddings, recipe
        self.fft_size, self.hop, self.window_size = stft
        self.random = np.random.default_rng(seed)
        self.frames = int(recipe.seconds * RATE)
        self.groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, clip in enumerate(clips.clips):
            if embeddings[index, 0].any():  # a clip without an embedding cannot be asked for
                self.groups[clip.mid][clip.group].append(index)
        self.classes = list(self.groups)
        weights = np.array([len(self.groups[mid]) for mid in self.classes], float) ** recipe.class_power
        self.weights = weights / weights.sum()

    @cached_property
    def foes(self) -> dict[str, tuple[list[int], list[int]]]:
        """Of each class, the classes that may stand against it: all, and its siblings (places in `classes`)."""
        return {
            mid: (
                [place for place, other in enumerate(self.classes) if not related(mid, other)],
                [place for place, other in enumerate(self.classes) if siblings(mid, other) and not related(mid, other)],
            )
            for mid in self.classes
        }

    def batch(self) -> Batch:
        """Draw one batch."""
        recipe, rows = self.recipe, []
        sources: list[np.ndarray] = []
        owners: list[int] = []
        curves: list[np.ndarray] = []
        gains: list[float] = []
        asked: list[tuple[int, int | None, np.ndarray]] = []  # mixture, source or None, query
        for mixture in range(recipe.mixtures):
            mids = self._classes()
            places = []
            for number, mid in enumerate(mids):
                index = self._clip(mid)
                places.append((len(sources), index, mid))
                sources.append(self._source(index, mid))
                owners.append(mixture)
                curves.append(self._curve())
                gains.append(0.0 if number == 0 else self.random.uniform(*recipe.interference_db))
            order = [places[0], *self.random.permutation(np.array(places[1:], dtype=object)).tolist()]
            for turn in range(recipe.queries):
                absent = turn > 0 and (turn >= len(order) or self.random.random() < recipe.absent * recipe.queries)
                if absent:
                    mid = self._absent(mids)
                    asked.append((mixture, None, self._query(self._clip(mid), mid, own=False)))
                else:
                    source, index, mid = order[turn]
                    asked.append((mixture, source, self._query(index, mid, own=True)))
        spectra = spectrum.stft(torch.from_numpy(np.stack(sources)), self.fft_size, self.hop, self.window_size)
        spectra = spectra * torch.from_numpy(np.stack(curves))[:, None]
        energy = spectra.abs().square().sum((1, 2)).clamp(min=1e-8)
        scale = torch.tensor(10 ** (np.array(gains) / 20), dtype=torch.float32) / energy.sqrt()
        spectra = spectra * scale[:, None, None]
        mixtures = torch.zeros(recipe.mixtures, *spectra.shape[1:], dtype=spectra.dtype)
        mixtures.index_add_(0, torch.tensor(owners), spectra)
        silence = torch.zeros_like(spectra[0])
        rows = [silence if source is None else spectra[source] for _, source, _ in asked]
        queries = np.stack([query for _, _, query in asked])
        return Batch(mixtures, torch.stack(rows), torch.from_numpy(queries))

    def _classes(self) -> list[str]:
        """The classes of one mixture, none related to another."""
        recipe = self.recipe
        mids = [self.classes[self.random.choice(len(self.classes), p=self.weights)]]
        draw = self.random.random()
        count = 1 if draw < recipe.single_source else 3 if draw > 1 - recipe.third_source else 2
        while len(mids) < count:
            anyone, near = self.foes[mids[0]]
            if near and self.random.random() < recipe.hard_negative:
                mid = self.classes[self.random.choice(near)]
            else:
                weights = self.weights[anyone]
                mid = self.classes[self.random.choice(anyone, p=weights / weights.sum())]
            if not any(related(mid, other) for other in mids):
                mids.append(mid)
        return mids

    def _absent(self, mids: list[str]) -> str:
        while True:
            mid = self.classes[self.random.choice(len(self.classes), p=self.weights)]
            if not any(related(mid, other) for other in mids):
                return mid

    def _clip(self, mid: str) -> int:
        groups = list(self.groups[mid].values())
        group = groups[self.random.integers(len(groups))]
        return group[self.random.integers(len(group))]

    def _source(self, index: int, mid: str) -> np.ndarray:
        played = self._play(self.clips.clips[index])
        if self.random.random() < self.recipe.layered:
            played = played + self._play(self.clips.clips[self._clip(mid)])
        if self.random.random() < self.recipe.room:
            played = in_room(played, RATE, self.random)
        return played if np.square(played).sum() > 1e-4 else self._source(self._clip(mid), mid)

    def _play(self, clip: Clip) -> np.ndarray:
        samples = self.clips.samples[clip.start : clip.start + clip.frames]
        speed = self.random.uniform(*SPEEDS) if self.random.random() < 0.8 else 1.0
        spare = clip.frames - self.frames * speed  # below 0: the clip is placed somewhere in the segment
        if spare <= 0:
            start = self.random.uniform(spare, 0.0)
        else:
            # The louder of two: where a long clip is silent, only its noise floor could be asked for.
            starts = self.random.uniform(0.0, spare, 2)
            start = max(starts, key=lambda first: _loudness(samples[int(first) : int(first + self.frames * speed)]))
        return at_speed(samples, start, self.frames, speed) / 32768

    def _curve(self) -> np.ndarray:
        bins = self.fft_size // 2 + 1
        filtered = self.random.random() < self.recipe.filtered
        return filter_curve(bins, RATE, self.random) if filtered else np.ones(bins, np.float32)

    def _query(self, index: int, mid: str, own: bool) -> np.ndarray:
        """One to three examples, averaged: of other groups of the class, or of the target's own clip."""
        groups = self.groups[mid]
        others = [group for group in groups if group != self.clips.clips[index].group]
        chosen = [index]
        if not own or (others and self.random.random() < self.recipe.other_group):
            names = others or list(groups)
            count = 1 if self.random.random() < 0.7 else self.random.integers(2, 4)
            picked = [groups[names[self.random.integers(len(names))]] for _ in range(count)]
            chosen = [group[self.random.integers(len(group))] for group in picked]
        versions = self.random.integers(self.embeddings.shape[1], size=len(chosen))
        query = self.embeddings[chosen, versions].astype(np.float32).mean(0)
        if self.random.random() < 0.5:  # dropout: no single feature may be relied upon
            query = query * (self.random.random(len(query)) > 0.1)
        return query.astype(np.float32)
