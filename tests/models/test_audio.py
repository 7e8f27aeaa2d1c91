import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.audio import Resampler, Waveform, mono, resample

RATES = [8000, 11025, 22050, 32000, 44100, 44101, 48000, 96000, 192000]


def noise(channels: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed)) * 0.1


@settings(max_examples=60, deadline=None)
@given(
    from_rate=st.sampled_from(RATES),
    to_rate=st.sampled_from(RATES),
    channels=st.integers(1, 3),
    cuts=st.lists(st.integers(0, 9000), max_size=6),
    empty_end=st.booleans(),
)
def test_resampling_in_blocks_equals_resampling_the_whole(from_rate, to_rate, channels, cuts, empty_end):
    samples = noise(channels, 6000)
    edges = sorted({min(cut, 6000) for cut in cuts} | {0, 6000})
    blocks = [samples[:, start:end] for start, end in itertools.pairwise(edges)]
    if empty_end:
        blocks.append(samples[:, :0])
    resampler = Resampler(from_rate, to_rate, channels)
    parts = [resampler.feed(block, last=number == len(blocks) - 1) for number, block in enumerate(blocks)]
    whole = resample(samples, from_rate, to_rate)
    assert whole.shape == (channels, round(6000 * to_rate / from_rate))
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("frames", [0, 1, 7, 400])
def test_even_the_shortest_recording_resamples_to_its_length(frames):
    assert resample(noise(2, frames), 44100, 32000).shape == (2, round(frames * 32000 / 44100))


def test_resampling_keeps_a_tone_in_place():
    time = torch.arange(44100, dtype=torch.float64) / 44100
    there = resample(torch.sin(2 * torch.pi * 1000 * time).float()[None], 44100, 32000)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(32000, dtype=torch.float64) / 32000).float()
    assert torch.allclose(there[0, 1000:-1000], expected[1000:-1000], atol=1e-4)


def test_mono_is_the_mean_of_channels():
    samples = noise(2, 1000)
    assert torch.allclose(mono(samples), samples.mean(dim=0))
    assert torch.equal(mono(samples[:1]), samples[0])


def test_mono_takes_the_loudest_channel_where_channels_cancel():
    tone = noise(1, 1000)[0]
    assert torch.equal(mono(torch.stack([tone, -1.1 * tone])), -1.1 * tone)


def test_mono_of_one_loud_channel_among_silent_ones_is_that_channel():
    # The mean of a sound that is only on the left loses 6.02 dB to the left channel.
    tone = noise(1, 1000)[0]
    assert torch.equal(mono(torch.stack([tone, torch.zeros(1000)])), tone)
    assert torch.allclose(mono(torch.stack([tone, 0.1 * tone])), 0.55 * tone)


def test_silence_and_nothing_have_a_mono_too():
    assert torch.equal(mono(torch.zeros(2, 10)), torch.zeros(10))
    assert mono(torch.zeros(2, 0)).shape == (0,)


def test_a_span_is_cut_to_the_recording():
    recording = Waveform(noise(1, 8000), 8000)
    assert recording.duration == 1.0
    assert torch.equal(recording.span(0.25, 0.5).samples, recording.samples[:, 2000:4000])
    assert recording.span(0.9, 3.0).frames == 800
    assert recording.span(2.0, 3.0).frames == 0


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (torch.zeros(5), r"\(channels, n\), not \(5,\)"),
        (torch.zeros(0, 5), r"\(channels, n\), not \(0, 5\)"),
        (torch.zeros(44100, 2), r"\(channels, n\), not \(44100, 2\): transpose them"),
        (torch.zeros(1, 5, dtype=torch.float64), "float32 between -1 and 1, not torch.float64"),
        (torch.zeros(1, 5, dtype=torch.int16), "float32 between -1 and 1, not torch.int16"),
        (np.zeros((1, 5), np.float32), "a tensor, as torch.from_numpy makes, not of <class 'numpy.ndarray'>"),
    ],
)
def test_a_waveform_of_another_shape_or_type_is_refused(samples, said):
    with pytest.raises(ValueError, match=f"samples must be {said}"):
        Waveform(samples, 8000)
