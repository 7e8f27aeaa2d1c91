"""Training examples: mixtures of clips of unrelated classes, each with several queries.

A batch is drawn in two steps. `plan` decides everything with small arrays on the CPU: clips, offsets, speeds, levels
and queries. `models.training.rendering` computes the audio. Mixture i of step s is drawn from a generator seeded by
(seed, s, i), independent of earlier steps and of the number of processes, so that a run resumes exactly where it
stopped.
"""

from collections.abc import Callable

import numpy as np
import torch

from models.corpus.augmentation import FILTER_POINTS, SPEEDS, filter_points
from models.corpus.clips import ENERGY_HOP, RATE, Clips
from models.corpus.relations import are_related, siblings, with_descendants
from models.labels import find
from models.queries.plda import PLDAPrior
from models.runs.clip_embeddings import have_embeddings
from models.training.clip_index import ClipIndex, WeightedDraw
from models.training.recipe import LASTING, Recipe
from models.training.rendering import ROOMS, UNLABELLED, Batch, Plan, Renderer, labels_of
from models.training.songs import Songs

SILENT = 1e-4  # energy of a segment below which it counts as silent
TRIES = 20  # draws of an unrelated clip before giving up
FIRST_WANTED = 0.75  # share of the first of several wanted classes
SONG_LEVEL_DB = 3.0  # most by which a part of a song is louder or softer than in it
SONG_FILTER = 0.4  # of the gains of other sources' filters
SONG_QUIET = 1e-3  # energy of a part, relative to the loudest one's in the segment, below which it is left out


class Mixer:
    """Draws batches from decoded clips and their cached query embeddings (clips, versions, D); None for batches without
    queries.

    anchors: (clips,) first sample of each clip's anchored segment, or None.
    prior: corrects queries made from other recordings than the target's, or None.
    device: of the samples and the mixtures.

    Raises ValueError if the recipe has songs and the clips have none.
    """

    def __init__(
        self,
        clips: Clips,
        embeddings: np.ndarray | None,
        recipe: Recipe,
        stft: tuple[int, int, int],
        seed: int = 0,
        anchors: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        prior: PLDAPrior | None = None,
    ) -> None:
        self.prior = prior
        self.clips, self.embeddings, self.recipe, self.seed, self.anchors = clips, embeddings, recipe, seed, anchors
        self.frames = int(recipe.seconds * RATE)
        self.renderer = Renderer(clips, self.frames, stft, device)
        # A clip without an embedding cannot be a query.
        usable = np.ones(len(clips.clips), bool) if embeddings is None else have_embeddings(embeddings)
        self.index = ClipIndex(
            (index, self._labels(index), clips.clips[index].group) for index in np.flatnonzero(usable).tolist()
        )
        self.classes = self.index.classes
        weights = self.index.group_counts.astype(float) ** recipe.class_power
        if UNLABELLED in self.classes:
            place = self.classes.index(UNLABELLED)
            weights[place] = 0.0
            weights[place] = weights.sum() * recipe.unlabelled / (1 - recipe.unlabelled)
        self.shares = weights / weights.sum()
        self._class_draw = WeightedDraw(np.arange(len(self.classes)), self.shares)
        self.wanted = [self.classes.index(mid) for mid in self._known(recipe.wanted.split(";"))]
        lasting = with_descendants(find(name).mid for name in LASTING)
        self.interferer_weights = weights * [recipe.lasting if mid in lasting else 1.0 for mid in self.classes]
        # Of each class, the classes that may interfere with it: all, and its siblings (places in `classes`).
        self.interferers = {mid: self._interferers(mid, lambda one, other: True) for mid in self.classes}
        self.near_interferers = {mid: self._interferers(mid, siblings) for mid in self.classes}
        instruments = with_descendants([find("Musical instrument").mid])
        players = [at for at, mid in enumerate(self.classes) if mid in instruments]
        self._players = WeightedDraw(np.array(players), self.shares[players]) if players else None
        self._songs = Songs(clips.clips, usable) if recipe.songs else None
        if self._songs is not None and not self._songs:
            raise ValueError("the recipe has songs, and no corpus has any: give another --corpus, of rendered songs")

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Return the batch of a step, or one of `parts` equal shares of its mixtures."""
        return self.renderer.render(self.plan(step, part, parts))

    def plan(self, step: int, part: int = 0, parts: int = 1) -> Plan:
        """Draw the plan of a step's batch, or of one of `parts` equal shares of it."""
        if self.recipe.mixtures % parts:
            raise ValueError(f"{self.recipe.mixtures} mixtures a batch cannot be shared equally by {parts} processes")
        plan = Plan()
        share = self.recipe.mixtures // parts
        for mixture in range(part * share, (part + 1) * share):
            self._add_mixture(plan, np.random.default_rng([self.seed, step, mixture]))
        return plan

    def _add_mixture(self, plan: Plan, random: np.random.Generator) -> None:
        recipe = self.recipe
        mixture = plan.mixture_of_source[-1] + 1 if plan.mixture_of_source else 0
        first = len(plan.mixture_of_source)
        if self._songs and random.random() < recipe.songs:
            chosen = self._add_song(plan, mixture, self._songs.draw(random), random)
        else:
            chosen = self._add_unrelated(plan, mixture, random)
        self._add_targets(plan, mixture, first, chosen, random)

    def _add_song(
        self, plan: Plan, mixture: int, parts: list[int], random: np.random.Generator
    ) -> list[tuple[int, str]]:
        """Add parts of one song at one offset and speed, where the first part sounds, in one room if any. Parts that
        hardly sound there are left out; return the others."""
        recipe = self.recipe
        first = len(plan.mixture_of_source)
        room = int(random.integers(ROOMS)) if random.random() < recipe.room else -1
        plan.mixture_of_source.append(mixture)
        self._play(plan, parts[0], random)
        offset, speed = plan.offsets[-1], plan.speeds[-1]
        energies = [float(self._energy(index, np.array([max(offset, 0.0)]), speed)[0]) for index in parts]
        audible = [index for index, energy in zip(parts, energies, strict=True) if energy > SONG_QUIET * max(energies)]
        kept = [parts[0], *(index for index in audible if index != parts[0])]
        for index in kept[1:]:
            plan.mixture_of_source.append(mixture)
            plan.clips.append(index)
            plan.offsets.append(offset)
            plan.speeds.append(speed)
            plan.source_of_play.append(len(plan.mixture_of_source) - 1)
        for _ in kept:
            plan.gains.append(random.uniform(-SONG_LEVEL_DB, SONG_LEVEL_DB))
            plan.level_of.append(first)
            points = (
                SONG_FILTER * filter_points(random) if random.random() < recipe.filtered else np.zeros(FILTER_POINTS)
            )
            plan.filters.append(points)
            plan.rooms.append(room)
        return [(index, self._labels(index)[0]) for index in kept]

    def _add_unrelated(self, plan: Plan, mixture: int, random: np.random.Generator) -> list[tuple[int, str]]:
        """Add sources that have nothing to do with each other."""
        recipe = self.recipe
        chosen = self._choose(random)
        for number, (index, mid) in enumerate(chosen):
            plan.mixture_of_source.append(mixture)
            plan.gains.append(0.0 if number == 0 else random.uniform(*recipe.interference_db))
            plan.level_of.append(len(plan.level_of))
            points = filter_points(random) if random.random() < recipe.filtered else np.zeros(FILTER_POINTS)
            plan.filters.append(points)
            plan.rooms.append(int(random.integers(ROOMS)) if random.random() < recipe.room else -1)
            self._play(plan, index, random)
            if random.random() < recipe.layered:
                other = self._clip(mid, [mids for at, mids in self._mids(chosen) if at != number], random)
                if other is not None:
                    self._play(plan, other, random)
        return chosen

    def _add_targets(
        self, plan: Plan, mixture: int, first: int, chosen: list[tuple[int, str]], random: np.random.Generator
    ) -> None:
        """Choose the targets among a mixture's sources, of which `first` is the first, and their queries."""
        recipe = self.recipe
        labels: list[set[str]] = [set() for _ in chosen]
        for clip, source in zip(plan.clips, plan.source_of_play, strict=True):
            if source >= first:
                labels[source - first].update(self._labels(clip))
        order = [0, *(1 + random.permutation(len(chosen) - 1)).tolist()]
        for turn in range(recipe.queries):
            absent = turn > 0 and (turn >= len(order) or random.random() < recipe.absent * recipe.queries)
            missing = self._absent([tuple(mids) for mids in labels], random) if absent else None
            if missing is None:  # also if a corpus of few classes has none that is absent
                source = order[turn % len(order)]
                index, mid = chosen[source]
                plan.target_sources.append((mixture, first + source))
                against = [tuple(mids) for at, mids in enumerate(labels) if at != source]
            else:
                index, mid = missing
                plan.target_sources.append((mixture, -1))
                against = [tuple(mids) for mids in labels]
            plan.queries.append(self.draw_query(index, mid, missing is None, against, random))

    def _labels(self, index: int) -> tuple[str, ...]:
        return labels_of(self.clips.clips[index])

    def _mids(self, chosen: list[tuple[int, str]]) -> list[tuple[int, tuple[str, ...]]]:
        return [(number, self._labels(index)) for number, (index, _) in enumerate(chosen)]

    def _choose(self, random: np.random.Generator) -> list[tuple[int, str]]:
        """Choose the sources of one mixture: clips with the class that each represents, none related to another's."""
        recipe = self.recipe
        if recipe.band and random.random() < recipe.band and self._players is not None:
            return self._band(self._players, random)
        mid = self.classes[self._first_class(random)]
        first = self._clip(mid, [], random)
        assert first is not None  # noqa: S101  there are no other sources yet
        chosen = [(first, mid)]
        draw = random.random()
        count = 1 if draw < recipe.single_source else 3 if draw > 1 - recipe.third_source else 2
        for _ in range(count * TRIES):
            if len(chosen) == count:
                break
            near = self.near_interferers[mid] is not None and random.random() < recipe.hard_negative
            interferers = self.near_interferers[mid] if near else self.interferers[mid]
            if interferers is None:
                raise ValueError(f"no class of the corpus is unrelated to {mid}: nothing to mix it with")
            other = self.classes[interferers.draw(random)]
            clip = self._clip(other, [mids for _, mids in self._mids(chosen)], random)
            if clip is not None:
                chosen.append((clip, other))
        return chosen

    def _first_class(self, random: np.random.Generator) -> int:
        """Choose the place of the first source's class."""
        if not self.wanted or random.random() >= self.recipe.wanted_share:
            return self._class_draw.draw(random)
        rest = self.wanted[1:]
        return rest[random.integers(len(rest))] if rest and random.random() >= FIRST_WANTED else self.wanted[0]

    def _known(self, names: list[str]) -> list[str]:
        """Return the mids of the named classes that the clips have."""
        return [mid for name in names if name and (mid := find(name).mid) in self.index]

    def _band(self, players: WeightedDraw, random: np.random.Generator) -> list[tuple[int, str]]:
        """Choose three or four unrelated instruments, fewer if they are rare."""
        chosen: list[tuple[int, str]] = []
        count = int(random.integers(3, 5))
        for _ in range(count * TRIES):
            if len(chosen) == count:
                break
            mid = self.classes[players.draw(random)]
            clip = self._clip(mid, [mids for _, mids in self._mids(chosen)], random)
            if clip is not None:
                chosen.append((clip, mid))
        return chosen

    def _absent(self, there: list[tuple[str, ...]], random: np.random.Generator) -> tuple[int, str] | None:
        """Choose a clip, and its class, that is unrelated to the sources; None if there is hardly any."""
        for _ in range(TRIES):
            mid = self.classes[self._class_draw.draw(random)]
            clip = self._clip(mid, there, random)
            if clip is not None:
                return clip, mid
        return None

    def _clip(self, mid: str, against: list[tuple[str, ...]], random: np.random.Generator) -> int | None:
        """Choose a clip of a class, groups evenly, with no label related to `against`; None if there is hardly any."""
        for _ in range(TRIES):
            index = self.index.draw(mid, random)
            if not self._is_related(index, against):
                return index
        return None

    def _is_related(self, index: int, against: list[tuple[str, ...]]) -> bool:
        """Return whether a label of a clip is related to one of `against`."""
        mids = self._labels(index)
        return any(are_related(own, other) for own in mids for others in against for other in others)

    def _interferers(self, mid: str, wanted: Callable[[str, str], bool]) -> WeightedDraw | None:
        """Return draws among the unrelated `wanted` classes; None if there are none."""
        places = [at for at, other in enumerate(self.classes) if wanted(mid, other) and not are_related(mid, other)]
        return WeightedDraw(np.array(places), self.interferer_weights[places]) if places else None

    def _play(self, plan: Plan, index: int, random: np.random.Generator) -> None:
        clip = self.clips.clips[index]
        speed = random.uniform(*SPEEDS) if random.random() < self.recipe.varied_speed else 1.0
        spare = clip.frames - self.frames * speed  # below 0: the clip is placed anywhere in the segment
        if spare <= 0:
            offset = random.uniform(spare, 0.0)
        elif self.anchors is not None and random.random() < self.recipe.anchored:
            offset = min(float(self.anchors[index]), spare)
        else:
            # The loudest of some, to avoid the silent parts of a long clip.
            offsets = random.uniform(0.0, spare, self.recipe.louder_of)
            energies = self._energy(index, offsets, speed)
            if energies.max() < SILENT:
                offsets = random.uniform(0.0, spare, 16)
                energies = self._energy(index, offsets, speed)
            offset = offsets[energies.argmax()]
        plan.clips.append(index)
        plan.offsets.append(float(offset))
        plan.speeds.append(float(speed))
        plan.source_of_play.append(len(plan.mixture_of_source) - 1)

    def _energy(self, index: int, offsets: np.ndarray, speed: float) -> np.ndarray:
        steps = self.clips.energy(self.clips.clips[index])
        running = np.zeros(len(steps) + 1)
        np.cumsum(steps, out=running[1:])
        first = (offsets / ENERGY_HOP).astype(int)
        last = np.minimum(first + int(self.frames * speed / ENERGY_HOP), len(running) - 1)
        return running[last] - running[first]

    def draw_query(
        self, index: int, mid: str, own: bool, against: list[tuple[str, ...]], random: np.random.Generator
    ) -> np.ndarray:
        """Return the mean of one to three examples, of other groups of the class or of the target's own clip. None of
        them has a label that is related to `against`, the other sources of the mixture."""
        assert self.embeddings is not None  # noqa: S101  recipes without queries do not call this
        chosen = [index]
        if not own or (self.index.has_others(mid) and random.random() < self.recipe.other_group):
            count = 1 if random.random() < 0.7 else random.integers(2, 4)
            drawn = [self.index.draw(mid, random, apart_from=index) for _ in range(count)]
            chosen = [other for other in drawn if not self._is_related(other, against)] or [index]
        versions = random.integers(min(self.recipe.query_versions, self.embeddings.shape[1]), size=len(chosen))
        query = self.embeddings[chosen, versions].astype(np.float32).mean(0)
        if self.prior is not None and not (own and chosen == [index]):
            query = self.prior.posterior_mean(torch.from_numpy(query)).numpy()
        if random.random() < self.recipe.query_dropout:  # so that no single feature is indispensable
            query = query * (random.random(len(query)) > 0.1)
        return query.astype(np.float32)
