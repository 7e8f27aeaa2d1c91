"""The model under test: run as in the service, with batches of mixtures and queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.checkpoints import Bundle
from models.compute.precision import Arithmetic
from models.errors import SilentQuery
from models.options import DEFAULT_OPTIONS, SPEEDS, Quality
from models.queries.profiles import Profiles
from models.queries.query import QueryRules, embed
from models.runs import assembly, run_folder
from models.separation.detector_runner import DetectorRunner
from models.separation.speeds import mean_estimate, play

AT_ONCE_SECONDS = 40.0  # of mixtures in a batch; more is no faster on a CPU
MASKING_BYTES = {"cpu": 1 << 28, "cuda": 1 << 33}  # memory for the masks of a batch


def load_bundle(weights: str) -> Bundle:
    """Load a model by name or folder, or a separator's run as a model without presence, named after its folder."""
    run = Path(weights)
    if (run / run_folder.SETUP).exists():
        return assembly.assemble(run, run.resolve().name, "run").bundle
    return checkpoints.load(weights)


class ModelUnderTest:
    """A bundle prepared for inference, irreversibly: it can neither be trained nor saved afterwards.

    Masks are computed in bfloat16 where that is fast, queries always in float32, as in the service.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", quality: Quality = DEFAULT_OPTIONS.quality) -> None:
        self.bundle = bundle
        self._speeds = SPEEDS[quality]
        self.arithmetic = Arithmetic.of(device)
        for network in (bundle.detector, bundle.separator):
            self.arithmetic.prepare(network)
        bundle.separator.fold()
        self.runner = DetectorRunner(bundle.detector, self.arithmetic)
        self.profiles = Profiles(bundle.prior, bundle.clip_embeddings)
        self._separator: Any = bundle.separator
        self._rules = QueryRules(**bundle.config["query"])

    @property
    def model_id(self) -> str:
        """Name and version, such as "base@1"."""
        return self.bundle.model_id

    @property
    def query_size(self) -> int:
        return self._separator.query_size

    def rows_at_once(self, seconds: float) -> int:
        """Return the number of mixtures of this length in a batch."""
        fitting = MASKING_BYTES.get(self.arithmetic.device.type, 1 << 28) / self._separator.mask_bytes
        return max(1, int(min(AT_ONCE_SECONDS, fitting) / seconds))

    def query(self, example: np.ndarray) -> Tensor:
        """Return the query (D,) of an example (n,) from another recording; NaN if it is silent by the model's rules."""
        return self.apply_prior(self.embed(example))

    def embed(self, sound: np.ndarray) -> Tensor:
        """Return the embedding (D,) of a sound (n,): the query if the sound is the target itself. NaN as above."""
        try:
            return embed(self.runner, [torch.from_numpy(sound)], self._rules, self.model_id).vector.float()
        except SilentQuery:
            return torch.full((self.query_size,), float("nan"))

    def apply_prior(self, encoded: Tensor) -> Tensor:
        """Return the query (D,) of an example's embedding, or of the mean of several."""
        prior = self.bundle.prior
        return encoded if prior is None else prior.posterior_mean(encoded)

    @torch.inference_mode()
    def estimates(self, mixtures: Tensor, queries: Sequence[Tensor]) -> list[Tensor]:
        """Return the estimates (B, T) of mixtures (B, T) for each of several queries (B, D); NaN where a query is NaN.

        Mixtures are encoded once, whatever the number of queries.
        """
        passes = [self._estimates(play(mixtures, speed), queries) for speed in self._speeds]
        return [mean_estimate(estimates, self._speeds) for estimates in zip(*passes, strict=True)]

    def _estimates(self, mixtures: Tensor, queries: Sequence[Tensor]) -> list[Tensor]:
        """Return the estimates at one speed."""
        device, separator = self.arithmetic.device, self._separator
        spectrum = separator.spectrum(mixtures.to(device))
        magnitude = spectrum.abs()
        with self.arithmetic.masks():
            encoded = separator.encode_mixture(magnitude)
        found = []
        for query_batch in queries:
            missing = query_batch.isnan().any(1)
            if missing.all():
                found.append(torch.full_like(mixtures, float("nan")))
                continue
            with self.arithmetic.float32():
                condition = separator.condition(query_batch.nan_to_num().to(device))
            with self.arithmetic.masks():
                mask = separator.predict(*encoded, condition)[:, : magnitude.shape[1]].float()
            estimate = separator.waveform(spectrum * mask, mixtures.shape[-1]).cpu()
            estimate[missing] = float("nan")
            found.append(estimate)
        return found

    @torch.inference_mode()
    def oracle(self, mixtures: Tensor, targets: Tensor) -> Tensor:
        """Return the estimates (B, T) of the ideal mask in the separator's spectrum: the upper bound for any query."""
        return ideal_mask(
            self._separator, mixtures.to(self.arithmetic.device), targets.to(self.arithmetic.device)
        ).cpu()


def ideal_mask(separator: Any, mixtures: Tensor, targets: Tensor) -> Tensor:
    """Apply the best real mask between 0 and 1 of each bin to mixtures (B, T) with targets (B, T)."""
    whole, wanted = separator.spectrum(mixtures), separator.spectrum(targets)
    mask = ((whole.conj() * wanted).real / whole.abs().square().clamp(min=1e-12)).clamp(0, 1)
    return separator.waveform(whole * mask, mixtures.shape[-1])
