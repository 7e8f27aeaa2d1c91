"""Separation as the authors' program does it, for comparison: windows of 3 s every 2 s in batches of 8, float32,
and a Fourier transform by convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks.unet import UNet
from models.spectrum import hann

_WINDOW_SECONDS, _STEP_SECONDS = 3, 2
_BATCH = 8


class ConvolutionalTransform:
    """STFT and inverse by convolution with the rows of the Fourier matrix, windowed."""

    def __init__(self, fft_size: int, hop: int) -> None:
        self._size, self._hop = fft_size, hop
        window = hann(fft_size, torch.device("cpu"), torch.float64)
        rows = torch.fft.rfft(torch.eye(fft_size, dtype=torch.float64)).T
        weights = torch.full((rows.shape[0], 1), 2.0, dtype=torch.float64)  # all but the first and last row stand twice
        weights[0] = weights[-1] = 1.0
        self._forward = torch.cat([rows.real * window, rows.imag * window])[:, None].float()
        inverse = torch.cat([rows.real * weights * window, rows.imag * weights * window]) / fft_size
        self._inverse = inverse[:, None].float()
        self._window_power = window.square().float()[None, None]

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, samples) to a complex spectrum (B, frames, bins)."""
        padded = F.pad(waveforms[:, None], (self._size // 2,) * 2, mode="reflect")
        real, imaginary = F.conv1d(padded, self._forward, stride=self._hop).chunk(2, dim=1)
        return torch.complex(real, imaginary).transpose(1, 2)

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        """Complex spectrum (B, frames, bins) to waveforms (B, samples)."""
        parts = torch.cat([spectrum.real, spectrum.imag], dim=2).transpose(1, 2)
        summed = F.conv_transpose1d(parts, self._inverse, stride=self._hop)
        ones = torch.ones(1, 1, spectrum.shape[1])
        power = F.conv_transpose1d(ones, self._window_power, stride=self._hop)
        start = self._size // 2
        return (summed / power.clamp(min=1e-8))[:, 0, start : start + samples]


@torch.inference_mode()
def separate(separator: UNet, mixture: Tensor, query: Tensor) -> Tensor:
    """Return the estimate (samples,) of a mono mixture (samples,) for one query (D,)."""
    size, step = _WINDOW_SECONDS * separator.rate, _STEP_SECONDS * separator.rate
    transform = ConvolutionalTransform(separator.fft_size, separator.hop)
    condition = separator.condition(query[None])
    padding = -len(mixture) % step + size - step  # so that all samples lie in a window's first 2 s
    windows = F.pad(mixture, (0, padding)).unfold(0, size, step)
    kept = []
    for batch in windows.split(_BATCH):
        spectrum = transform.spectrum(batch)
        mask = separator.mask(spectrum.abs(), condition.expand(len(batch), -1))
        kept.append(transform.waveform(mask * spectrum, size)[:, :step])
    return torch.cat(kept).flatten()[: len(mixture)]
