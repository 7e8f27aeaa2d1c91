"""The learner of the default preset's separator: the loss on mixtures with queries, in the STFT domain."""

from typing import Any

import torch
from torch import Tensor

from models.networks import QueryEncoder
from models.networks.resunet import ResUNet
from models.training.loop import Learner
from models.training.losses import separation_loss, waveform_l1
from models.training.rendering import Batch

LOSSES = ("snr", "l1")


class SeparatorLearner(Learner):
    """A ResUNet with a frozen query encoder. loss: "snr", or the paper's "l1" on waveforms."""

    network: ResUNet

    def __init__(self, query_encoder: QueryEncoder, sizes: dict[str, Any] | None = None, loss: str = "snr") -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {loss}")
        self.loss = loss
        self.network = ResUNet(query_encoder, **(sizes or {}))
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  torch's stubs lack it

    @property
    def stft(self) -> tuple[int, int, int]:
        """FFT size, hop and window size of the spectra in batches."""
        return self.network.fft_size, self.network.hop, self.network.window_size

    def sound(self, batch: Batch) -> bool:
        return bool(torch.isfinite(torch.view_as_real(batch.mixture)).all() and torch.isfinite(batch.queries).all())

    def forward(self, batch: Batch) -> Tensor:
        repeats = len(batch.queries) // len(batch.mixture)
        magnitude = batch.mixture.abs()
        encoded = self.network.encode_mixture(magnitude)
        log_bands, feature_map, embeddings = (part.repeat_interleave(repeats, 0) for part in encoded)
        mask = self.network.predict(log_bands, feature_map, embeddings, self.network.condition(batch.queries))
        mixture = batch.mixture.repeat_interleave(repeats, 0)
        mask = mask[:, : magnitude.shape[1]].float()
        if self.loss == "l1":
            spectra = (mask * mixture - batch.targets, mixture)
            return waveform_l1(*(self.network.waveform(part, batch.samples) for part in spectra))
        return separation_loss(mask, batch.targets, mixture)
