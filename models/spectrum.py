"""Short-time Fourier transform, its inverse, and mel bands; windows, padding and scaling are defined here only."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

ACTIVE = 1e-3  # a frame counts for the level while its power is within 30 dB of the loudest one
QUIETEST = 1e-5  # lowest RMS used for normalisation, so that silence is not amplified


def stft(waveforms: Tensor, fft_size: int, hop: int, window_size: int | None = None) -> Tensor:
    """Return the complex spectrum of waveforms (B, samples): (B, samples // hop + 1, fft_size // 2 + 1).

    Frames are centred on multiples of `hop`, edges reflected, the window a periodic Hann of `window_size`
    samples (default `fft_size`), nothing scaled. Waveforms too short to reflect are padded with silence,
    so any length from one sample up is accepted.
    """
    samples, half = waveforms.shape[-1], fft_size // 2
    # Reflection needs more samples than it adds; frames beyond the waveform are removed below.
    padded = F.pad(waveforms, (0, max(0, half + 1 - samples)))
    spectrum = torch.stft(
        padded,
        fft_size,
        hop_length=hop,
        win_length=window_size or fft_size,
        window=hann(window_size or fft_size, waveforms.device, waveforms.dtype),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    return spectrum[..., : samples // hop + 1].transpose(-1, -2)


def istft(spectrum: Tensor, fft_size: int, hop: int, samples: int, window_size: int | None = None) -> Tensor:
    """Return the waveforms (B, samples) of a complex spectrum (B, frames, bins); inverse of `stft` with the same sizes.

    Overlapping frames are weighted by the window and divided by the sum of its squares (Griffin and Lim, 1984).
    The window must span at least two hops, so that the samples after the last frame's centre are covered. Raises
    ValueError for more samples than the frames' windows cover.
    """
    window = hann(window_size or fft_size, spectrum.device, spectrum.real.dtype)
    size, half = len(window), len(window) // 2
    covered = (spectrum.shape[-2] - 1) * hop + size - half
    if samples > covered:
        raise ValueError(f"{spectrum.shape[-2]} frames cover {covered} samples, not {samples}")
    left = (fft_size - size) // 2  # of the window in the FFT
    frames = torch.fft.irfft(spectrum, fft_size)[..., left : left + size]
    rows = frames.shape[-2] + math.ceil(size / hop) - 1
    summed, weights = frames.new_zeros(len(frames), rows, hop), window.new_zeros(rows, hop)
    # The parts of all frames that lie equally far from their beginnings overlap nowhere: `torch.istft`, which adds
    # frame by frame, takes twice as long.
    for row, start in enumerate(range(0, size, hop)):
        part = window[start : start + hop]
        place = slice(row, row + frames.shape[-2]), slice(len(part))
        summed[:, *place].addcmul_(frames[..., start : start + hop], part)
        weights[place] += part.square()
    inside = slice(half, half + samples)
    return summed.flatten(1)[:, inside] / weights.flatten()[inside]


def power(spectrum: Tensor) -> Tensor:
    """Return |spectrum|^2 of a complex one; the square of `abs` takes three times as long."""
    return spectrum.real.square() + spectrum.imag.square()


def loudness(magnitude: Tensor, window_size: int) -> Tensor:
    """Return the RMS (B,) of waveforms over their active frames, from their magnitudes (B, frames, bins)."""
    power = magnitude.square().mean(2)
    active = power >= ACTIVE * power.amax(1, keepdim=True)
    level = ((power * active).sum(1) / active.sum(1)).sqrt()
    # The mean power of a bin is the waveform's mean square times the energy of the window, 3/8 of its length.
    return (level / (0.375 * window_size) ** 0.5).clamp(min=QUIETEST)


def hann(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the periodic Hann window (size,)."""
    return torch.hann_window(size, periodic=True, device=device, dtype=dtype)


def mel_bands(
    fft_size: int,
    rate: int,
    bands: int,
    lowest_hz: float,
    highest_hz: float,
    scale: Literal["slaney", "htk"] = "slaney",
    normalised: bool = True,
) -> Tensor:
    """Return triangular filters (bins, bands) from a power or magnitude spectrum to mel bands.

    `normalised` divides each triangle by its width in Hz (Slaney's norm), which makes white noise flat.
    """
    with torch.device("cpu"):  # a constant that networks on the meta device need too
        return torchaudio.functional.melscale_fbanks(
            fft_size // 2 + 1,
            f_min=lowest_hz,
            f_max=highest_hz,
            n_mels=bands,
            sample_rate=rate,
            norm="slaney" if normalised else None,
            mel_scale=scale,
        )
