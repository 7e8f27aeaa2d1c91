"""The default preset's separator: shapes, levels, and the shared query encoder."""

import copy

import pytest
import torch

from models.networks import QueryEncoder
from models.networks.resunet import FilmBlock, ResUNet, band_matrices
from models.networks.yamnet import Yamnet


def small(
    query_encoder: QueryEncoder, channels: tuple[int, ...] = (8, 8, 16, 16), blocks: tuple[int, ...] = (1, 1, 1, 1)
) -> ResUNet:
    return ResUNet(query_encoder, bands=64, channels=channels, blocks=blocks, code=8, recurrent=8).eval()


@pytest.fixture(scope="module")
def network() -> ResUNet:
    torch.manual_seed(0)
    detector = Yamnet(list(range(521))).eval()
    separator = small(detector)
    torch.nn.init.normal_(separator.recurrent_out.weight, std=0.1)
    for name, weight in separator.named_parameters():
        if name.endswith("conv2.weight"):  # zero at the start of training: then nothing would depend on anything
            torch.nn.init.normal_(weight, std=0.1)
    return separator


@torch.inference_mode()
@pytest.mark.parametrize("samples", [1, 320, 16_000, 64_000, 100_001])
def test_any_length_comes_back_as_long(network: ResUNet, samples: int) -> None:
    estimate = network(torch.randn(2, samples) * 0.1, torch.rand(2, 1024))
    assert estimate.shape == (2, samples)
    assert estimate.isfinite().all()


@torch.inference_mode()
def test_masks_do_not_depend_on_the_mixtures_level(network: ResUNet) -> None:
    condition = network.condition(torch.rand(1, 1024))
    magnitude = network.spectrum(torch.randn(1, 32_000) * 0.1).abs()
    loud, quiet = network.mask(magnitude, condition), network.mask(magnitude * 1e-2, condition)
    assert torch.allclose(loud, quiet, atol=1e-3)


@torch.inference_mode()
def test_rows_of_a_batch_do_not_touch_one_another(network: ResUNet) -> None:
    mixtures, queries = torch.randn(3, 32_000) * 0.1, torch.rand(3, 1024)
    together = network(mixtures, queries)
    alone = torch.cat([network(mixtures[i : i + 1], queries[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


@torch.inference_mode()
def test_one_mixture_is_encoded_once_for_many_queries(network: ResUNet) -> None:
    magnitude = network.spectrum(torch.randn(1, 48_000)).abs()
    conditions = network.condition(torch.rand(3, 1024))
    together = network.predict(*network.encode_mixture(magnitude), conditions)[:, : magnitude.shape[1]]
    alone = torch.cat([network.mask(magnitude, condition[None]) for condition in conditions])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_folding_changes_nothing_but_rounding(network: ResUNet) -> None:
    folded = copy.deepcopy(network)
    for block in (module for module in folded.modules() if isinstance(module, FilmBlock)):
        block.norm2.get_buffer("running_mean").normal_()
        block.norm2.get_buffer("running_var").uniform_(0.5, 2)
    mixtures, queries = torch.randn(2, 32_000), torch.rand(2, 1024)
    before = folded(mixtures, queries)
    folded.fold()
    assert not any(
        isinstance(module.norm2, torch.nn.BatchNorm2d) for module in folded.modules() if isinstance(module, FilmBlock)
    )
    torch.testing.assert_close(folded(mixtures, queries), before, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_masks_are_between_0_and_1_and_depend_on_the_query(network: ResUNet) -> None:
    magnitude = network.spectrum(torch.randn(2, 32_000)).abs()[:1].repeat(2, 1, 1)
    masks = network.mask(magnitude, network.condition(torch.rand(2, 1024)))
    assert masks.min() >= 0 and masks.max() <= 1
    assert not torch.allclose(masks[0], masks[1], atol=1e-4)


@torch.inference_mode()
def test_silence_stays_silence(network: ResUNet) -> None:
    assert not network(torch.zeros(1, 32_000), torch.rand(1, 1024)).any()


def test_the_query_encoder_is_shared_and_not_part_of_the_separators_state(network: ResUNet) -> None:
    names = [*network.state_dict(), *dict(network.named_parameters())]
    assert not any(name.startswith("ear.") for name in names)


@torch.inference_mode()
@pytest.mark.parametrize("blocks", [(1, 1, 2, 1), (2, 1, 1, 3)])
def test_a_deeper_network_begins_as_the_shallow_one(network: ResUNet, blocks: tuple[int, ...]) -> None:
    deeper = small(network.query_encoder, blocks=blocks)
    for weight in deeper.parameters():
        torch.nn.init.normal_(weight, std=0.1)  # as after training
    assert deeper.is_deeper_than(network) and not network.is_deeper_than(deeper)
    deeper.load_state_dict(deeper.deepen(network))
    magnitude = network.spectrum(torch.randn(2, 32_000) * 0.1).abs()
    queries = torch.rand(2, 1024)
    masks = [each.mask(magnitude, each.condition(queries)) for each in (network, deeper)]
    torch.testing.assert_close(*masks, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "blocks"), [((8, 8, 16, 32), (2, 2, 2, 2)), ((8, 8, 16, 16), (1, 1, 1, 1))])
def test_networks_of_other_sizes_are_not_deeper(
    network: ResUNet, channels: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    assert not small(network.query_encoder, channels, blocks).is_deeper_than(network)


@pytest.mark.parametrize("bands", [64, 128])
def test_bands_and_bins_describe_the_same_spectrum(bands: int) -> None:
    to_bands, to_bins = band_matrices(513, bands)
    assert torch.allclose(to_bands.sum(0), torch.ones(bands), atol=1e-5), "a band is a mean of bins"
    assert torch.allclose(to_bins.sum(0), torch.ones(513), atol=1e-5), "a bin lies between two bands"
    flat = torch.ones(1, 513) @ to_bands @ to_bins
    assert torch.allclose(flat, torch.ones(1, 513), atol=1e-5)


def test_the_shipped_size_is_within_its_bounds() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    separator = ResUNet(Yamnet(list(range(521)))).eval().requires_grad_(False)
    assert sum(parameter.numel() for parameter in separator.parameters()) <= 7e6
    seconds = 4.0
    magnitude, condition = torch.rand(1, int(seconds * 100), 513), separator.condition(torch.rand(1, 1024))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        separator.mask(magnitude, condition)
    assert counter.get_total_flops() / seconds <= 3e9
