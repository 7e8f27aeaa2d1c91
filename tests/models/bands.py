"""A complete small model without weights, which detects and separates four frequency bands.

A query is a band's share of the power (4 values), so that a tone is a query for its own band. Everything around
networks can be tested with it, to the last bit and in milliseconds.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from models import labels
from models.checkpoints import Bundle
from models.networks import DetectorOutput
from models.queries.query import QueryRules
from models.spectrum import istft, stft

RATE = 32000
EDGES = (0.0, 500.0, 2000.0, 6000.0, 16000.1)  # Hz
BANDS = len(EDGES) - 1
CENTRES = (250.0, 1000.0, 4000.0, 10000.0)  # Hz, a tone for each band
RULES = QueryRules(window_seconds=0.5, hop_seconds=0.5, least_energy=None, range_db=30.0)


def band_of_bins(fft_size: int) -> Tensor:
    """(bins,) the band of each bin."""
    return torch.bucketize(torch.arange(fft_size // 2 + 1) * RATE / fft_size, torch.tensor(EDGES[1:-1]), right=True)


class BandDetector(nn.Module):
    rate = RATE
    embedding_size = BANDS
    window_samples = 4 * RATE
    frame_seconds = 0.1
    rows_held = 1
    reach_rows: int | None = None

    def powers(self, waveforms: Tensor) -> Tensor:
        power = stft(waveforms, 1024, 320).abs().square()
        return power @ nn.functional.one_hot(band_of_bins(1024), BANDS).float()

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        frames = self.powers(waveforms)[:, : waveforms.shape[1] // 3200 * 10]
        rows = frames.unflatten(1, (-1, 10)).mean(dim=2)
        curve = torch.zeros(*rows.shape[:2], labels.CLASSES)
        curve[..., :BANDS] = (rows / (waveforms.square().mean() * 512 * 384 + 1e-9)).clamp(0, 1)
        return DetectorOutput(curve.amax(1), curve, self.embed(waveforms))

    def embed(self, waveforms: Tensor) -> Tensor:
        return nn.functional.normalize(self.powers(waveforms).mean(dim=1), dim=1)


class BandSeparator(nn.Module):
    """Scales each band by its value in the query."""

    rate = RATE
    query_size = BANDS
    fft_size = 1024
    hop = 320
    mask_bytes = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.masked: list[int] = []  # how many masks were asked for at once
        self.windows_encoded = 0  # windows listened to

    def condition(self, queries: Tensor) -> Tensor:
        return queries

    def spectrum(self, waveforms: Tensor) -> Tensor:
        return stft(waveforms, self.fft_size, self.hop)

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        return self.predict(*self.encode_mixture(magnitude), condition)

    def encode_mixture(self, magnitude: Tensor) -> tuple[Tensor]:
        self.windows_encoded += len(magnitude)
        return (magnitude,)

    def predict(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        self.masked.append(len(condition))
        mask = condition[:, None, band_of_bins(self.fft_size)].clamp(0, 1)
        return mask.expand(-1, magnitude.shape[1], -1)

    def fold(self) -> None:
        """Nothing to merge."""

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        return istft(spectrum, self.fft_size, self.hop, samples)

    def forward(self, mixtures: Tensor, queries: Tensor) -> Tensor:
        spectrum = self.spectrum(mixtures)
        return self.waveform(spectrum * self.mask(spectrum.abs(), self.condition(queries)), mixtures.shape[-1])


def bundle(presence: dict[str, Any] | None = None) -> Bundle:
    """The model as an engine takes it; Speech, Siren and Dog are askable, as its three lowest bands."""
    embeddings = {labels.find(name).mid: torch.eye(BANDS)[band] for band, name in enumerate(("Speech", "Siren", "Dog"))}
    config = {"query": asdict(RULES)}
    return Bundle("bands", "1", BandDetector().eval(), BandSeparator().eval(), config, embeddings, presence)


def tone(band: int, frames: int, rate: int, level: float = 0.3) -> Tensor:
    """(n,) a tone in a band; the highest is left out by rates that cannot hold it."""
    return (level * torch.sin(2 * torch.pi * CENTRES[band] * torch.arange(frames, dtype=torch.float64) / rate)).float()
