"""Presence of a target in a recording, decided once for the whole of it, and the gate that follows from it.

The decision is a logistic regression over `FEATURES`, fitted on validation mixtures and shipped with the weights. The
gate is applied when stems are written: one gain for the whole recording and a slow envelope, together at most 30 dB of
attenuation, so that a wrong decision stays audible and the gain does not fluctuate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES = ("mixture_likeness", "estimate_likeness", "estimate_level")

LOWEST_GAIN_DB = -30.0
_LEVEL_RANGE_DB = (-60.0, 10.0)  # of the estimate in the mixture
_HEARD_RANGE_DB = 30.0  # windows this far below the loudest are ignored
_AT_ONCE_SECONDS = 16.0  # of windows in a batch: of 16 each takes three quarters of its time in a batch of 8
_AT_ONCE_WINDOWS = 32  # of all recordings together: a batch of 16 targets' windows would take 160 MB
_QUIETEST = 1e-5  # RMS below which a window is silence

_STEP_SECONDS = 0.5  # of the envelope
_EXPAND_BELOW_DB = 40.0  # what lies this far below a stem's loudest half second is leakage
_EXPAND_DB = 12.0
_NEIGHBOURS = 2  # steps on each side that are not attenuated either, so that onsets and decays stay intact


@dataclass(frozen=True)
class Rule:
    """Parameters of a model's presence decision.

    weights: one for each of FEATURES. window_seconds: length of the windows that are embedded. level: RMS to which each
    window is normalised, or None. opens: presence from which a stem is unchanged; closes: up to which it is attenuated
    by `LOWEST_GAIN_DB`; between them the gain in dB is linear.
    """

    weights: tuple[float, ...] = (6.0, 6.0, 0.1)
    bias: float = -5.0
    window_seconds: float = 2.0
    level: float | None = None
    opens: float = 0.5
    closes: float = 0.05

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Rule":
        """Return the rule of a model's configuration; missing fields take defaults. Raises TypeError, ValueError."""
        given: dict[str, Any] = dict(config)
        if "weights" in given:
            given["weights"] = tuple(given["weights"])
        rule = cls(**given)
        if len(rule.weights) != len(FEATURES):
            raise ValueError(f"presence has {len(rule.weights)} weights, not {len(FEATURES)}")
        return rule

    def presence(self, measured: Tensor) -> float:
        """Features (3,) -> probability that the target is present."""
        return torch.sigmoid(measured.double() @ torch.tensor(self.weights, dtype=torch.float64) + self.bias).item()

    def gain_db(self, presence: float) -> float:
        """Return the gate's gain for the whole recording in dB, from LOWEST_GAIN_DB to 0."""
        openness = (presence - self.closes) / (self.opens - self.closes)
        return LOWEST_GAIN_DB * (1 - min(max(openness, 0.0), 1.0))


def features(mixture: Tensor, estimate: Tensor, estimate_level_db: float) -> Tensor:
    """Return the features of the presence decision (3,), in the order of FEATURES.

    mixture, estimate: (W,) cosines of the query and each window that is not silent; W may be 0. The largest of each
    counts. estimate_level_db: the estimate's energy over the mixture's, in dB; clamped to -60 to 10.
    """
    lowest, highest = _LEVEL_RANGE_DB
    likest = [audible.max().item() if len(audible) else 0.0 for audible in (mixture, estimate)]
    return torch.tensor([*likest, min(max(estimate_level_db, lowest), highest)])


def level_db(estimate: float, mixture: float) -> float:
    """Return the energy of the estimate over the mixture's in dB; silence has the lowest level."""
    if estimate <= 0 or mixture <= 0:
        return _LEVEL_RANGE_DB[0]
    return 10 * math.log10(estimate / mixture)


def measure(
    embed: Callable[[Tensor], Tensor], rate: int, rule: Rule, query: Tensor, mixture: Tensor, estimate: Tensor
) -> Tensor:
    """Return the features (3,) of one query (D,) in a mixture (n,) with its estimate (n,), as the engine computes them
    block by block; used for fitting."""
    mixture_similarity, estimate_similarity = (
        QuerySimilarity(embed, rate, rule, query[None]),
        QuerySimilarity(embed, rate, rule, query[None], shared=False),
    )
    mixture_similarity.add(mixture[None])
    estimate_similarity.add(estimate[None])
    mixture_similarity.finish()
    estimate_similarity.finish()
    level = level_db(estimate.double().square().sum().item(), mixture.double().square().sum().item())
    return features(mixture_similarity.similarities(0), estimate_similarity.similarities(0), level)


class QuerySimilarity:
    """Similarity of streamed mono recordings to queries (Q, D), window by window.

    embed: windows (B, T) -> (B, D). shared: one recording, compared with every query; otherwise one for each query.
    """

    def __init__(
        self, embed: Callable[[Tensor], Tensor], rate: int, rule: Rule, queries: Tensor, shared: bool = True
    ) -> None:
        self._embed = embed
        self._size = round(rule.window_seconds * rate)
        self._batch = self._size * max(1, int(_AT_ONCE_SECONDS * rate / self._size))
        self._level = rule.level
        self._queries = queries
        self._shared = shared
        recordings = 1 if shared else len(queries)
        self._waiting = torch.zeros(recordings, 0)
        # Numbers rather than tensors: small tensors allocated between large ones would keep the heap from shrinking.
        self._cosines: list[list[float]] = []  # (Q,) a window
        self._energies: list[list[float]] = []  # (recordings,) a window

    def add(self, block: Tensor) -> None:
        """Add the next samples (recordings, n)."""
        self._waiting = torch.cat([self._waiting, block], dim=1)
        while self._waiting.shape[1] >= self._batch:
            self._compare_together([(self, self._waiting[:, : self._batch])])
            self._waiting = self._waiting[:, self._batch :].clone()

    def finish(self) -> None:
        """Process the rest; a partial window is padded."""
        self.finish_together([self])

    @staticmethod
    def finish_together(similarities: Sequence["QuerySimilarity"]) -> None:
        """Call `finish` of all, with their windows in common batches. All have the same `embed`."""
        QuerySimilarity._compare_together([(each, each._take_rest()) for each in similarities])

    def similarities(self, query: int) -> Tensor:
        """Return the cosines (W,) of the query and every window that is not silent."""
        if not self._energies:
            return torch.zeros(0)
        energies = torch.tensor(self._energies)[:, 0 if self._shared else query]
        audible = (energies > self._size * _QUIETEST**2) & (energies >= energies.max() * 10 ** (-_HEARD_RANGE_DB / 10))
        return torch.tensor(self._cosines)[audible, query]

    def _take_rest(self) -> Tensor:
        left = self._waiting.shape[1] % self._size
        # A partial window counts if it is half a window, or the whole recording.
        if left * 2 >= self._size or (left and left == self._waiting.shape[1] and not self._energies):
            self._waiting = F.pad(self._waiting, (0, self._size - left))
        whole = self._waiting.shape[1] // self._size * self._size
        rest, self._waiting = self._waiting[:, :whole], self._waiting[:, :0]
        return rest

    @staticmethod
    def _compare_together(blocks: Sequence[tuple["QuerySimilarity", Tensor]]) -> None:
        """Embed whole windows (recordings, windows * size) and compare them with the queries."""
        prepared = [(each, *each._windows(block)) for each, block in blocks if block.shape[1]]
        # The embedding of silence is meaningless, and costs as much.
        audible = [windows[sounding] for _, windows, sounding, _ in prepared]
        if not prepared:
            return
        batches = torch.cat(audible).split(_AT_ONCE_WINDOWS)
        embedded = [prepared[0][0]._embed(batch).cpu().float() for batch in batches if len(batch)]
        parts = torch.cat(embedded).split([len(part) for part in audible]) if embedded else [None] * len(prepared)
        for (each, _, sounding, energies), part in zip(prepared, parts, strict=True):
            embeddings = torch.zeros(*sounding.shape, each._queries.shape[1])
            if part is not None:
                embeddings[sounding] = part
            each._energies += energies.T.tolist()
            each._cosines += F.cosine_similarity(embeddings, each._queries[:, None], dim=2).T.tolist()

    def _windows(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a block's windows at their level, which of them are not silent, and their energies."""
        windows = block.unflatten(1, (-1, self._size))
        energies = windows.square().sum(dim=2)
        rms = (energies / self._size).sqrt()
        if self._level is not None:
            windows = windows * (self._level / rms.clamp_min(_QUIETEST))[..., None]
        return windows, rms > _QUIETEST, energies


class Levels:
    """Energies of streams (streams, C, n) in steps of half a second."""

    def __init__(self, rate: int, streams: int) -> None:
        self._step = round(_STEP_SECONDS * rate)
        self._steps: list[list[float]] = []
        self._open = torch.zeros(streams, dtype=torch.float64)
        self._filled = 0

    def add(self, block: Tensor) -> None:
        energies = block.double().square().sum(dim=1)
        while energies.shape[1]:
            part = energies[:, : self._step - self._filled]
            self._open = self._open + part.sum(dim=1)
            self._filled += part.shape[1]
            energies = energies[:, part.shape[1] :]
            if self._filled == self._step:
                self._steps.append(self._open.tolist())
                self._open, self._filled = torch.zeros_like(self._open), 0

    def steps(self) -> Tensor:
        """Return the energies (streams, steps); the last step may be shorter."""
        steps = [*self._steps, self._open.tolist()] if self._filled or not self._steps else self._steps
        return torch.tensor(steps, dtype=torch.float64).T


class Gate:
    """The gain of one stem: `gain_db` for all of it, and an envelope that attenuates parts far below the loudest one.

    energies: (steps,) of the stem, as `Levels` measures them.
    """

    def __init__(self, energies: Tensor, gain_db: float) -> None:
        levels = 10 * torch.log10(energies.double() / energies.max().clamp_min(1e-30) + 1e-30)
        below = (-_EXPAND_BELOW_DB - levels).clamp(0, _EXPAND_DB)
        width = 2 * _NEIGHBOURS + 1
        cut = -F.max_pool1d(-below[None], width, stride=1, padding=_NEIGHBOURS)[0]
        self._decibels = (gain_db - cut).clamp_min(LOWEST_GAIN_DB)

    @property
    def is_active(self) -> bool:
        """Whether the gate attenuates any part of the stem."""
        return bool((self._decibels < 0).any())

    def gains(self, start: int, count: int, rate: int) -> Tensor:
        """Return the linear gains (count,) of the samples from `start` at `rate`, interpolated in dB between steps."""
        step = rate * _STEP_SECONDS
        touched = self._decibels[max(int(start / step - 1), 0) : int((start + count) / step) + 2]
        if len(touched) and bool((touched == touched[0]).all()):  # as most are
            return torch.full((count,), (touched[0].float() * (math.log(10) / 20)).exp().item())
        position = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) / step - 0.5
        position = position.clamp(0, len(self._decibels) - 1)
        before = position.floor().long()
        after = (before + 1).clamp_max(len(self._decibels) - 1)
        decibels = torch.lerp(self._decibels[before], self._decibels[after], position - before)
        return (decibels.float() * (math.log(10) / 20)).exp()
