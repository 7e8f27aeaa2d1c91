"""The learner of the default preset's separator and its losses on mixtures with queries: the default one in the STFT
domain, where no inverse transform is needed, and the paper's."""

from typing import Any

import torch
from torch import Tensor

from models.networks import QueryEncoder
from models.networks.resunet import ResUNet
from models.training.loop import Learner
from models.training.rendering import Batch

LOSSES = ("snr", "l1")
SOFT = 1e-3  # soft threshold of 30 dB: better estimates gain little
SOFT_ABSENT = 1e-2  # 20 dB: with more, silence would be rewarded above separation


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


def separation_loss(masks: Tensor, targets: Tensor, mixtures: Tensor) -> Tensor:
    """Return the mean over rows of the negative SNR in dB with a soft threshold.

    masks: real (B, frames, bins); targets, mixtures: complex, the same shape. If the target is silent, the energy of
    the estimate relative to the mixture's, with its own threshold.
    """
    # |m X - S|^2 = m^2 |X|^2 - 2 m Re(X* S) + |S|^2: no complex number needs a gradient.
    power = mixtures.real.square() + mixtures.imag.square()
    product = mixtures.real * targets.real + mixtures.imag * targets.imag
    target = torch.view_as_real(targets).square().sum((1, 2, 3))
    mixture = power.sum((1, 2))
    error = (masks * (masks * power - 2 * product)).sum((1, 2)) + target
    present = target > 1e-6 * mixture
    reference = torch.where(present, target, mixture).clamp(min=1e-12)  # digital silence
    soft = torch.where(present, SOFT, SOFT_ABSENT)
    return 10 * torch.log10(error.clamp(min=0) / reference + soft).mean()


def waveform_l1(errors: Tensor, mixtures: Tensor) -> Tensor:
    """Return the mean magnitude of the errors of estimates (B, T), relative to the RMS of each mixture (B, T), so that
    quiet ones count as much."""
    level = mixtures.square().mean(1).sqrt().clamp(min=1e-8)
    return (errors.abs().mean(1) / level).mean()
