"""The other way of separating is the same computation: its figures are comparable."""

import torch

from models.bench import authors_way
from models.bench.authors_way import ConvolutionalTransform
from models.networks.unet import HyperParameters, UNet
from models.spectrum import istft, stft

SIZE, HOP = 2048, 320


def test_the_transform_by_convolution_equals_the_fast_one() -> None:
    waveforms = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    transform = ConvolutionalTransform(SIZE, HOP)
    spectrum = transform.spectrum(waveforms)
    assert torch.allclose(spectrum, stft(waveforms, SIZE, HOP), atol=2e-3)
    mask = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(1))
    expected = istft(mask * spectrum, SIZE, HOP, 32_000)
    assert torch.allclose(transform.waveform(mask * spectrum, 32_000), expected, atol=1e-4)


def test_every_sample_is_kept_and_a_window_equals_the_network() -> None:
    torch.manual_seed(0)
    separator = UNet(HyperParameters(query_size=8, channels=(2, 2, 2, 2, 2, 2))).eval()
    query = torch.rand(8)
    mixture = torch.randn(7 * separator.rate + 123)
    estimate = authors_way.separate(separator, mixture, query)
    assert estimate.shape == mixture.shape
    with torch.inference_mode():
        second = separator(mixture[None, 2 * separator.rate : 5 * separator.rate], query[None])[0]
    assert torch.allclose(estimate[2 * separator.rate : 4 * separator.rate], second[: 2 * separator.rate], atol=1e-3)
