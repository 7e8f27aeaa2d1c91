"""Packed convolutions compute what the layers that they replace do, and keep their weights once."""

import copy
import os
import subprocess
import sys
from collections.abc import Collection

import pytest
import torch

from models.audio import mono, resample
from models.compute.precision import Arithmetic
from models.networks.htsat import HTSAT
from models.networks.packed_layers import (
    PackedConvolution,
    PackedLinear,
    PackedPixels,
    PackedPointwise,
    PackedRectified,
    PackedUpsampling,
    RectifiedConvolution,
    pack_convolutions,
    pack_linear_layers,
    pack_square_convolutions,
)
from models.networks.unet import HyperParameters, UNet
from models.networks.yamnet import Yamnet
from models.validation.metrics import sdr, si_sdr
from tests.conftest import REPOSITORY
from tests.models.demo_recordings import recording
from tests.models.test_networks import SMALL_EAR

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="packs with oneDNN")
HALF = Arithmetic.of("cpu").bfloat16  # elsewhere oneDNN refuses to pack bfloat16, and the engine does not ask for it
needs_bfloat16 = pytest.mark.skipif(not HALF, reason="this CPU has no bfloat16")


@pytest.fixture(scope="module")
def mixture() -> torch.Tensor:
    """Two seconds of a real mixture, (1, samples) at 32 kHz."""
    loaded = recording("mixture")
    return resample(mono(loaded.samples)[None], loaded.rate, 32000)[:, 32000:96000]


@pytest.fixture(scope="module")
def separator(mixture: torch.Tensor) -> UNet:
    """The paper's architecture with fewer channels. Its norms are fitted to the mixture, as training does: its layers
    are as loud as each other, and its mask is no constant."""
    torch.manual_seed(0)
    network = UNet(HyperParameters(query_size=16, channels=(8, 8, 16, 16, 32, 32)))
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        network(mixture, torch.rand(1, 16))
    return network.eval()


def packed(separator: UNet, dtype: torch.dtype, float32: Collection[str] = ()) -> UNet:
    network = copy.deepcopy(separator)
    network.fold()
    network.pack(dtype, float32)
    return network


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
@pytest.mark.parametrize("channels", [(3, 5), (32, 16)])
@torch.inference_mode()
def test_a_packed_layer_equals_the_plain_one(channels: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, channels[0], *size)
    plain = torch.nn.Conv2d(*channels, 3, padding=1)
    torch.testing.assert_close(PackedConvolution.of(plain, torch.float32)(images), plain(images), rtol=0, atol=1e-5)
    rectified = PackedConvolution.of(plain, torch.float32, relu=True)(images)
    torch.testing.assert_close(rectified, plain(images).relu(), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_square_convolutions_of_a_network_are_packed_with_and_without_bias() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    layers = [
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1, bias=False),
        torch.nn.Conv2d(8, 8, 3, stride=2),
        torch.nn.Conv2d(8, 4, 1),
    ]
    network = torch.nn.Sequential(*layers)
    expected = network(images)
    pack_square_convolutions(network, torch.float32)
    assert [isinstance(layer, PackedConvolution) for layer in network] == [True, True, False, False]
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_packed_layer_answers_in_channels_last_to_an_image_of_one_channel_too() -> None:
    """In another layout, the next layer would convert what it gets, at the price of its products."""
    answer = PackedConvolution.of(torch.nn.Conv2d(1, 8, 3, padding=1), torch.float32)(torch.randn(1, 1, 5, 7))
    assert answer.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (8, 16)])
@torch.inference_mode()
def test_a_packed_layer_of_pixels_equals_the_plain_one_whatever_the_batch(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, plain = torch.randn(1, 48, *size), torch.nn.Conv2d(48, 24, 1)
    assert plain.bias is not None
    for dtype in [torch.float32, *([torch.bfloat16] if HALF else [])]:
        layer = PackedPixels(plain.weight, plain.bias, dtype)
        answer = layer(image.expand(3, -1, -1, -1))
        error = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(answer[:1].float(), plain(image).relu(), rtol=0, atol=error)
        assert torch.equal(answer, layer(image).expand(3, -1, -1, -1))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
@pytest.mark.parametrize("channels", [(3, 5), (32, 16)])
@torch.inference_mode()
def test_a_packed_upsampling_joins_what_the_plain_one_gives_with_the_skipped_image(
    channels: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    images, shift = torch.randn(2, channels[0], *size), torch.randn(2, channels[1], 1, 1)
    skip = torch.randn(2, 4, 2 * size[0], 2 * size[1])
    plain = torch.nn.ConvTranspose2d(*channels, 3, stride=2)
    layer = PackedUpsampling(plain, torch.float32)
    expected = torch.cat([plain(images)[:, :, :-1, :-1].relu() + shift, skip], dim=1)
    torch.testing.assert_close(layer(images, skip, shift), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_linear_layer_computes_in_the_number_format_around_it(bias: bool) -> None:
    torch.manual_seed(0)
    plain, tokens = torch.nn.Linear(48, 24, bias=bias), torch.randn(2, 5, 7, 48)
    layer = PackedLinear(plain, half=HALF)
    torch.testing.assert_close(layer(tokens), plain(tokens), rtol=0, atol=1e-5)
    if not HALF:
        return
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16
        torch.testing.assert_close(layer(tokens), plain(tokens), rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_a_packed_pointwise_layer_equals_the_plain_one(size: tuple[int, int], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 48, *size).contiguous(memory_format=layout)
    plain = torch.nn.Conv2d(48, 24, 1)
    layer = PackedPointwise(plain, half=HALF)
    torch.testing.assert_close(layer(images), plain(images), rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        torch.testing.assert_close(layer(images), plain(images), rtol=0, atol=0.02 if HALF else 1e-5)


@pytest.mark.parametrize(("channels", "groups"), [((1, 32), 1), ((48, 48), 48)])
@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_a_packed_layer_that_ends_in_a_relu_gives_the_same_numbers(
    channels: tuple[int, int], groups: int, stride: int
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, channels[0], 9, 17).contiguous(memory_format=torch.channels_last)
    plain = RectifiedConvolution(*channels, 3, stride, padding=1, groups=groups)
    layer = PackedRectified(plain, half=HALF)
    assert layer(images).min() == 0
    torch.testing.assert_close(layer(images), plain(images), rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        assert layer(images).dtype == (torch.bfloat16 if HALF else torch.float32)
        torch.testing.assert_close(layer(images), plain(images), rtol=0, atol=0.02 if HALF else 1e-5)


@torch.inference_mode()
def test_a_packed_query_encoder_hears_the_same(mixture: torch.Tensor) -> None:
    torch.manual_seed(0)
    detector = Yamnet(list(range(521))).eval()
    expected, packed = detector.embed(mixture), copy.deepcopy(detector)
    pack_convolutions(packed, half=HALF)
    assert not any(isinstance(module, torch.nn.Conv2d) for module in packed.modules())
    torch.testing.assert_close(packed.embed(mixture), expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        assert torch.cosine_similarity(packed.embed(mixture).float(), expected).min() > 0.995


@torch.inference_mode()
def test_a_packed_detector_hears_the_same(mixture: torch.Tensor) -> None:
    torch.manual_seed(0)
    detector = HTSAT(SMALL_EAR).eval()
    expected = detector(mixture)
    pack_linear_layers(detector, half=HALF)
    assert not any(isinstance(module, torch.nn.Linear) for module in detector.modules())
    torch.testing.assert_close(detector(mixture), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        sketch = detector.embed(mixture)
    assert torch.cosine_similarity(sketch, expected.embedding).min() > 0.995


@torch.inference_mode()
def test_packing_in_float32_changes_rounding_only(separator: UNet, mixture: torch.Tensor) -> None:
    queries = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    expected = separator(mixture, queries[:1])
    network = packed(separator, torch.float32)
    assert (network(mixture, queries[:1]) - expected).abs().max() < 1e-5
    together = network(mixture.expand(3, -1), queries)
    assert (together[:1] - expected).abs().max() < 1e-5, "whatever the batch"


@needs_bfloat16
@torch.inference_mode()
def test_bfloat16_is_close_and_blocks_in_float32_bring_it_closer(separator: UNet, mixture: torch.Tensor) -> None:
    query, loaded = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)), recording("target")
    target = resample(mono(loaded.samples)[None], loaded.rate, 32000)[:, 32000:96000]
    expected = separator(mixture, query)
    points = [(), ("encoder.0", "encoder.1", "decoder", "last"), ("encoder", "centre", "decoder", "last")]
    networks = [packed(separator, torch.bfloat16, point) for point in points]
    estimates = [network(mixture, query) for network in networks]
    ratios = [sdr(estimate, expected).item() for estimate in estimates]
    assert ratios[0] > 30
    assert ratios[0] + 1 < ratios[1] < ratios[2]
    assert ratios[2] > 90
    assert abs(si_sdr(estimates[0], target) - si_sdr(expected, target)).max() <= 0.05
    assert torch.equal(networks[0](mixture, query), estimates[0]), "the same bytes twice"


def test_a_packed_network_keeps_no_second_copy_of_its_weights(separator: UNet) -> None:
    network = packed(separator, torch.bfloat16 if HALF else torch.float32)
    left = {name for name, _ in network.named_parameters() if not name.startswith("bin_norm")}
    shifts = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    assert left == {f"{name}.{kind}" for name in (*shifts, "logits") for kind in ("weight", "bias")}


PEAK = """
import torch
from models.bench.machine import peak_mib
from models.networks.unet import HyperParameters, UNet
from models.networks.yamnet import Yamnet

torch.set_num_threads(1)
separator = UNet(HyperParameters(query_size=4, channels=(32, 4, 4, 4, 4, 4))).eval()
separator.pack(torch.float32)
with torch.inference_mode():
    image, condition = torch.rand(1, 1, 512, 1024), separator.condition(torch.rand(1, 4))
    separator.predict(image[:, :, :64], condition)
    before = peak_mib()
    separator.predict(image, condition)
    print(peak_mib() - before)
"""


def test_no_image_at_full_resolution_is_in_memory() -> None:
    """Only strips, and images of a few channels."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", PEAK]
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    image_mib = 32 * 512 * 1024 * 4 / 2**20
    assert float(ran.stdout) < 0.6 * image_mib  # 0.46


SIGNALS = """
import os, signal, sys, threading, time
import torch
from models.compute.precision import Arithmetic
from models.networks.packed_layers import pack_linear_layers

signal.signal(signal.SIGUSR1, lambda *_: None)
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 64))
Arithmetic.of("cpu").prepare(network)
pack_linear_layers(network, half=False)

def send() -> None:
    while True:
        time.sleep(0.0003)
        os.kill(os.getpid(), signal.SIGUSR1)

with torch.inference_mode():
    tokens = torch.randn(264, 512)
    expected = network(tokens)
    threading.Thread(target=send, daemon=True).start()
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        assert torch.equal(network(tokens), expected)
os._exit(0)
"""


def test_signals_do_no_harm() -> None:
    """Without a stack of their own they corrupt the heap, where oneDNN multiplies packed weights on AVX2."""
    ran = subprocess.run([sys.executable, "-c", SIGNALS, "2"], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
