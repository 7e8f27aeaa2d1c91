"""Detector runner: the detector on its device, and the presence of each query in a mixture and its estimates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.audio import mono
from models.compute.precision import Arithmetic
from models.queries.profiles import Profiles
from models.separation.presence import Gate, Levels, QuerySimilarity, Rule, features, level_db


class DetectorRunner:
    """A detector on its device.

    Queries and timelines are computed in float32 whatever the precision, since queries are saved and compared later.
    Embeddings that only decide presence, or that are taken off a span's query for its surroundings, may be computed in
    bfloat16, which changes a cosine by less than 0.005.
    """

    def __init__(self, detector, arithmetic: Arithmetic) -> None:
        self._detector = detector
        self._arithmetic = arithmetic
        self.rate: int = detector.rate
        self.embedding_size: int = detector.embedding_size

    @torch.inference_mode()
    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows (B, T) -> (B, D), on the CPU."""
        with self._arithmetic.float32():
            return self._detector.embed(waveforms.to(self._arithmetic.device)).cpu()

    @torch.inference_mode()
    def sketch(self, waveforms: Tensor) -> Tensor:
        """Windows (B, T) -> (B, D), on the CPU, in the precision of masks."""
        with self._arithmetic.masks():
            return self._detector.embed(waveforms.to(self._arithmetic.device)).float().cpu()

    @torch.inference_mode()
    def framewise(self, waveforms: Tensor) -> Tensor:
        """Windows (B, T) -> (B, F, C), on the CPU."""
        with self._arithmetic.float32():
            return self._detector(waveforms.to(self._arithmetic.device)).framewise.cpu()


@dataclass(frozen=True)
class Decision:
    """Presence of a query in the whole recording, 0 to 1, and the gate for its stem; None if it stays unchanged."""

    presence: float
    gate: Gate | None


class PresenceTracker:
    """Decides the presence of each query from the mixture and then its estimates, block by block.

    queries: (Q, D). Blocks of the mixture and of estimates are (C, n), at the detector's rate.
    """

    def __init__(self, runner: DetectorRunner, rule: Rule, profiles: Profiles, queries: Tensor) -> None:
        def embed_profiles(windows: Tensor) -> Tensor:
            return profiles(runner.sketch(windows))

        self._rule = rule
        query_profiles = profiles(queries)
        self._mixture = QuerySimilarity(embed_profiles, runner.rate, rule, query_profiles)
        self._estimates = QuerySimilarity(embed_profiles, runner.rate, rule, query_profiles, shared=False)
        self._mixture_energy = 0.0
        self._levels = [Levels(runner.rate, 1) for _ in queries]
        self._monos = torch.empty(len(queries), 0)  # of one time, until all queries have theirs

    def add_mixture(self, block: Tensor) -> None:
        """Add the next block of the mixture."""
        self._mixture_energy += block.double().square().sum().item()
        self._mixture.add(mono(block)[None])

    def add_estimate(self, query: int, block: Tensor) -> None:
        """Add the next block of one query's estimate; for each time, equally long ones of all queries in their order.

        Of a block only the mean of its channels is held.
        """
        self._levels[query].add(block[None])
        # One tensor for all: small ones allocated between large ones would keep the heap from shrinking.
        if self._monos.shape[1] != block.shape[1]:
            self._monos = torch.empty(len(self._levels), block.shape[1])
        self._monos[query] = mono(block)
        if query == len(self._levels) - 1:
            self._estimates.add(self._monos)

    def decide(self, gated: bool) -> Sequence[Decision]:
        """Return one decision for each query, after all blocks. gated: whether stems may be attenuated."""
        return decide_together([self], gated)[0]

    def _decide(self, gated: bool) -> Sequence[Decision]:
        decisions = []
        for number, levels in enumerate(self._levels):
            energies = levels.steps()[0]
            level = level_db(energies.sum().item(), self._mixture_energy)
            measured = features(self._mixture.similarities(number), self._estimates.similarities(number), level)
            presence = self._rule.presence(measured)
            gate = Gate(energies, self._rule.gain_db(presence)) if gated else None
            decisions.append(Decision(presence, gate if gate is not None and gate.is_active else None))
        return decisions


def decide_together(trackers: Sequence[PresenceTracker], gated: bool) -> list[Sequence[Decision]]:
    """Return the decisions of several recordings of one runner, whose last windows share batches."""
    QuerySimilarity.finish_together([part for each in trackers for part in (each._mixture, each._estimates)])
    return [each._decide(gated) for each in trackers]
