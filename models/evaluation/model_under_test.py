"""The model under measurement: as the service runs it, asked with many queries at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.checkpoints import Bundle
from models.detector_runner import DetectorRunner
from models.errors import SilentQuery
from models.precision import Arithmetic
from models.profiles import Profiles
from models.query import QueryRules, embed
from models.runs import assembly, run_folder

AT_ONCE_SECONDS = 40.0  # of mixtures in a batch; more is no faster on a CPU
MASKING_BYTES = {"cpu": 1 << 28, "cuda": 1 << 33}  # what their masks may take


def load_bundle(weights: str) -> Bundle:
    """A model by name or folder, or what a separator's run has come to: without presence, named after its folder."""
    run = Path(weights)
    if (run / run_folder.SETUP).exists():
        return assembly.assemble(run, run.resolve().name, "run")[0]
    return checkpoints.load(weights)


class ModelUnderTest:
    """A bundle prepared for inference, for good: it can be neither trained nor saved afterwards.

    Masks are computed in bfloat16 where that is fast, queries always in float32, as the service does.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self.bundle = bundle
        self.arithmetic = Arithmetic.of(device)
        for network in (bundle.detector, bundle.separator):
            self.arithmetic.prepare(network)
        bundle.separator.fold()
        self.runner = DetectorRunner(bundle.detector, self.arithmetic)
        self.profiles = Profiles(bundle.prior, bundle.class_embeddings)
        self._separator: Any = bundle.separator
        self._rules = QueryRules(**bundle.config["query"])

    @property
    def model_id(self) -> str:
        """Such as "base@1"."""
        return f"{self.bundle.name}@{self.bundle.version}"

    @property
    def query_size(self) -> int:
        return self._separator.query_size

    def rows_at_once(self, seconds: float) -> int:
        """How many mixtures of this length a batch should hold."""
        fitting = MASKING_BYTES.get(self.arithmetic.device.type, 1 << 28) / self._separator.mask_bytes
        return max(1, int(min(AT_ONCE_SECONDS, fitting) / seconds))

    def query(self, example: np.ndarray) -> Tensor:
        """(D,) for an example (n,) from another recording; NaN where the model's own rules hear nothing in it: no query
        can be made."""
        return self.apply_prior(self.embed(example))

    def embed(self, sound: np.ndarray) -> Tensor:
        """(D,) for the very sound (n,) that is looked for; NaN as above."""
        try:
            return embed(self.runner, [torch.from_numpy(sound)], self._rules, self.model_id).vector.float()
        except SilentQuery:
            return torch.full((self.query_size,), float("nan"))

    def apply_prior(self, encoded: Tensor) -> Tensor:
        """The query (D,) that an example's embedding makes, or the mean of several."""
        prior = self.bundle.prior
        return encoded if prior is None else prior.posterior_mean(encoded)

    @torch.inference_mode()
    def estimates(self, mixtures: Tensor, queries: Sequence[Tensor]) -> list[Tensor]:
        """Of mixtures (B, T), for each of several queries (B, D): (B, T). A row whose query is NaN gets NaN.

        Mixtures are listened to once, whatever the number of queries.
        """
        device, separator = self.arithmetic.device, self._separator
        spectrum = separator.spectrum(mixtures.to(device))
        magnitude = spectrum.abs()
        with self.arithmetic.masks():
            encoded = separator.encode_mixture(magnitude)
        found = []
        for asked in queries:
            unasked = asked.isnan().any(1)
            if unasked.all():
                found.append(torch.full_like(mixtures, float("nan")))
                continue
            with self.arithmetic.float32():
                condition = separator.condition(asked.nan_to_num().to(device))
            with self.arithmetic.masks():
                mask = separator.predict(*encoded, condition)[:, : magnitude.shape[1]].float()
            estimate = separator.waveform(spectrum * mask, mixtures.shape[-1]).cpu()
            estimate[unasked] = float("nan")
            found.append(estimate)
        return found

    @torch.inference_mode()
    def oracle(self, mixtures: Tensor, targets: Tensor) -> Tensor:
        """What the best real mask up to 1 gives in the separator's own spectrum (B, T): the bound of any query."""
        return ideal_mask(
            self._separator, mixtures.to(self.arithmetic.device), targets.to(self.arithmetic.device)
        ).cpu()


def ideal_mask(separator: Any, mixtures: Tensor, targets: Tensor) -> Tensor:
    """(B, T) twice -> (B, T): mixtures through the best real mask between 0 and 1 of each bin."""
    whole, wanted = separator.spectrum(mixtures), separator.spectrum(targets)
    mask = ((whole.conj() * wanted).real / whole.abs().square().clamp(min=1e-12)).clamp(0, 1)
    return separator.waveform(whole * mask, mixtures.shape[-1])
