"""Figures of a separator on listed mixtures."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.compute.precision import Arithmetic, device_of
from models.queries.plda import PLDAPrior
from models.queries.query import BASE_RULES, Embedder, QueryRules, embed
from models.validation.metrics import attenuation, improvements
from models.validation.mixtures import Mixture

BATCH = 20


@torch.inference_mode()
def queries_of(
    embedder: Embedder, rows: list[Mixture], kind: str, rules: QueryRules = BASE_RULES, prior: PLDAPrior | None = None
) -> Tensor:
    """Return the rows' queries (N, D) on the CPU; kind: "query" (another source of the target's class) or "absent".

    Raises SilentQuery if by the rules an example is silent."""
    examples = [torch.from_numpy(getattr(row, kind)) for row in rows]
    on_cpu = _CPUEmbedder(embedder)
    return torch.stack([embed(on_cpu, [example], rules, "evaluated", prior).vector for example in examples])


@torch.inference_mode()
def estimate_targets(separator: Any, rows: list[Mixture], queries: Tensor) -> Tensor:
    """Return estimates (N, samples) on the CPU, for one query (N, D) of each row, computed as the service does."""
    mixtures, device = stack(rows, "mixture"), device_of(separator)
    with Arithmetic.on(device).masks():
        pairs = zip(mixtures.split(BATCH), queries.split(BATCH), strict=True)
        return torch.cat(
            [separator(some.to(device), query_batch.to(device)).float().cpu() for some, query_batch in pairs]
        )


class _CPUEmbedder:
    """An embedder on any device that takes windows on the CPU and returns embeddings there."""

    def __init__(self, embedder: Any) -> None:
        self._embedder, self._device = embedder, device_of(embedder)
        self.rate: int = embedder.rate
        self.embedding_size: int = embedder.embedding_size

    def embed(self, waveforms: Tensor) -> Tensor:
        return self._embedder.embed(waveforms.to(self._device)).float().cpu()


def figures(separator: Any, rows: list[Mixture], queries: Tensor, absent: Tensor) -> dict[str, Tensor]:
    """Return figures of each row (N,), in dB: improvements of SI-SDR and SDR, whether the estimate is closer to the
    interference than to the target, and the attenuation of an absent query's estimate."""
    mixtures, targets = stack(rows, "mixture"), stack(rows, "target")
    estimates = estimate_targets(separator, rows, queries)
    gained = improvements(estimates, mixtures, targets, mixtures - targets)
    return gained | {"absent": attenuation(estimate_targets(separator, rows, absent), mixtures)}


def summary(measured: dict[str, Tensor]) -> dict[str, float]:
    """Return means over rows, the median, and `right_si_sdri`, the mean over the rows that are not `wrong`."""
    return {
        "si_sdri": measured["si_sdri"].mean().item(),
        "si_sdri_error": (measured["si_sdri"].std() / len(measured["si_sdri"]) ** 0.5).item(),
        "si_sdri_median": measured["si_sdri"].median().item(),
        "sdri": measured["sdri"].mean().item(),
        "wrong": measured["wrong"].mean().item(),
        "right_si_sdri": measured["si_sdri"][measured["wrong"] == 0].mean().item(),
        "absent": measured["absent"].mean().item(),
    }


def stack(rows: list[Mixture], kind: str) -> Tensor:
    """Return the rows' "mixture" or "target", (N, samples)."""
    return torch.from_numpy(np.stack([getattr(row, kind) for row in rows]))
