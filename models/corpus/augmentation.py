"""Augmentation of clips: other speeds, equalisers and rooms, which do not change the class of a sound.

A few hours of clips are little: augmentation is what helps a model on sounds outside the corpus. Everything here
computes with tensors on any device, since mixing runs on the corpus's device.
"""

import math

import numpy as np
import torch
from torch import Tensor

SPEEDS = (0.8, 1.27)
FILTER_DB = 10.0
FILTER_POINTS = 8
LOWEST_HZ = 60.0  # of the filter's points, which are an octave or so apart
ROOM_SECONDS = (0.15, 0.8)
CACHED_PLAYS = 4  # at once on a CPU: more do not fit its cache


def play(samples: Tensor, begins: Tensor, lengths: Tensor, offsets: Tensor, speeds: Tensor, frames: int) -> Tensor:
    """Return parts of clips at other speeds, which change the pitch too: (P, frames) float32 in [-1, 1].

    samples: flat int16. Each of P plays reads the clip at `begins` (P,) of `lengths` (P,) samples from `offsets` (P,)
    float64, which may be negative; outside the clip is silence.
    """
    times = torch.arange(frames, device=samples.device, dtype=torch.float64)
    at_once = CACHED_PLAYS if samples.device.type == "cpu" else len(begins)
    parts = zip(*(values.split(at_once) for values in (begins, lengths, offsets, speeds)), strict=True)
    played = []
    for begin, length, offset, speed in parts:
        places = offset[:, None] + speed[:, None] * times
        last = (length - 2).clamp(min=0)[:, None]
        outside = (places < 0) | (places > last)
        whole = places.long().clamp(min=0).minimum(last)
        fraction = (places - whole).float()
        index = whole + begin[:, None]
        sound = torch.lerp(samples[index].float(), samples[index + 1].float(), fraction)
        played.append(sound.masked_fill_(outside, 0.0))
    return torch.cat(played) / 32768


def filter_points(random: np.random.Generator) -> np.ndarray:
    """Draw the gains in dB (FILTER_POINTS,) of a random equaliser."""
    return random.uniform(-FILTER_DB, FILTER_DB, FILTER_POINTS)


def filter_curves(points: Tensor, bins: int, rate: int) -> Tensor:
    """Points in dB (S, FILTER_POINTS) -> smooth gains (S, bins) of an FFT's bins up to rate / 2."""
    hertz = torch.linspace(0, rate / 2, bins, device=points.device).clamp(min=LOWEST_HZ)
    octaves = torch.log2(hertz / LOWEST_HZ) / math.log2(rate / 2 / LOWEST_HZ) * (FILTER_POINTS - 1)
    left = octaves.long().clamp(max=FILTER_POINTS - 2)
    decibels = torch.lerp(points[:, left], points[:, left + 1], (octaves - left).to(points.dtype))
    return 10 ** (decibels.float() / 20)


def equalise(waveforms: Tensor, points: Tensor, rate: int) -> Tensor:
    """Apply equalisers of `points` (S, FILTER_POINTS) to waveforms (S, T); the length is unchanged."""
    size = 1 << (waveforms.shape[1] - 1).bit_length()
    curves = filter_curves(points, size // 2 + 1, rate)
    return torch.fft.irfft(torch.fft.rfft(waveforms, size) * curves, size)[:, : waveforms.shape[1]]


def rooms(count: int, rate: int, random: np.random.Generator) -> Tensor:
    """Draw responses of rooms (count, taps) without the direct sound: low-passed, decaying reflections."""
    taps = int(ROOM_SECONDS[1] * rate)
    times = np.arange(taps) / rate
    responses = np.zeros((count, taps), np.float32)
    for response in responses:
        seconds = random.uniform(*ROOM_SECONDS)
        reflections = random.standard_normal(taps) * 10 ** (-3 * times / seconds) * (times < seconds)
        reflections[: int(random.uniform(0.001, 0.02) * rate)] = 0
        spectrum = np.fft.rfft(reflections)
        spectrum /= 1 + np.linspace(0, rate / 2, len(spectrum)) / random.uniform(1500, 8000)
        spectrum *= random.uniform(0.1, 0.7) / np.sqrt((np.abs(spectrum) ** 2).mean() + 1e-12)
        response[:] = np.fft.irfft(spectrum, taps)
    return torch.from_numpy(responses)


def in_rooms(waveforms: Tensor, responses: Tensor) -> Tensor:
    """Add the reflections of rooms (S, taps) to waveforms (S, T); the length is unchanged."""
    size = 1 << (waveforms.shape[1] + responses.shape[1] - 1).bit_length()
    spectra = torch.fft.rfft(waveforms, size)
    reflected = torch.fft.irfft(spectra * torch.fft.rfft(responses, size), size)
    return waveforms + reflected[:, : waveforms.shape[1]]
