"""The paper's architectures at a size that trains in a blink."""

import pytest
import torch

from models.networks import htsat, unet

SMALL_EAR = htsat.HyperParameters(
    bands=32, frames=256, runs=2, patch=(2, 2), channels=8, depths=(2, 2), heads=(2, 4), window=4, classes=5
)
SMALL_UNET = unet.HyperParameters(fft_size=256, hop=64, query_size=16, channels=(4, 8))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return htsat.HTSAT(SMALL_EAR).eval()


@pytest.fixture
def separator():
    torch.manual_seed(0)
    return unet.UNet(SMALL_UNET).eval()


@pytest.mark.parametrize("samples", [1, 3200, 32_000, 255 * 320])
def test_the_detector_takes_clips_of_any_length_up_to_its_own(detector, samples):
    heard = detector(torch.randn(3, samples))
    assert heard.clipwise.shape == (3, 5)
    assert heard.framewise.shape == (3, 256, 5)
    steps = heard.framewise.unflatten(1, (-1, detector.rows_held))
    assert (steps == steps[:, :, :1]).all(), "rows of a step repeat the first"
    assert heard.embedding.shape == (3, 16) == (3, detector.embedding_size)
    assert all(answer.isfinite().all() for answer in heard)


def test_the_detector_refuses_longer_clips(detector):
    with pytest.raises(ValueError, match="cut it into windows"):
        detector(torch.zeros(1, 256 * 320))


def test_framewise_rows_follow_time_across_the_folds(detector):
    bands = torch.full((1, 256, 32), -5.0)
    quiet = detector.classify(bands).framewise[0]
    for start in range(0, 256, 64):
        click = bands.clone()
        click[:, start : start + 8] = 5
        change = (detector.classify(click).framewise[0] - quiet).abs().sum(1)
        assert start - 16 <= int(change.argmax()) < start + 24  # the attention's window blurs


def test_attention_looks_over_borders_of_windows_and_not_round_the_edges():
    torch.manual_seed(0)
    attention = htsat.WindowAttention(8, heads=2, window=(4, 4), shifted=True).eval()
    tokens = torch.randn(1, 8, 8, 8)
    before = attention(tokens)
    changed = tokens.clone()
    changed[0, 0, 0] += 1
    touched = (attention(changed) - before).abs().sum(-1)[0] > 1e-6
    assert touched[:2, :2].all()  # the corner's region, cut off by the shift
    assert not touched[2:].any()
    assert not touched[:, 2:].any()
    changed = tokens.clone()
    changed[0, 3, 3] += 1
    touched = (attention(changed) - before).abs().sum(-1)[0] > 1e-6
    assert touched[2:6, 2:6].all()


@pytest.mark.parametrize(
    "wrong", [{"frames": 250}, {"window": 5}, {"runs": 3}, {"bands": 30}], ids=lambda wrong: next(iter(wrong))
)
def test_sizes_that_do_not_divide_are_refused_when_the_detector_is_built(wrong):
    with pytest.raises(ValueError, match=r"divide|unfold"):
        htsat.HTSAT(htsat.HyperParameters(**(vars(SMALL_EAR) | wrong)))


def test_the_detector_learns(detector):
    detector.train()
    heard = detector(torch.randn(2, 32_000))
    (heard.clipwise.sum() + heard.embedding.square().sum()).backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("samples", [1, 100, 1000, 4097])
def test_the_separator_keeps_the_length(separator, samples):
    estimates = separator(torch.randn(2, samples), torch.randn(2, 16))
    assert estimates.shape == (2, samples)
    assert estimates.isfinite().all()


@torch.no_grad()
def test_the_mask_lies_between_0_and_1_and_is_a_half_at_the_top(separator):
    magnitude = torch.rand(2, 30, 129)
    mask = separator.mask(magnitude, separator.condition(torch.randn(2, 16)))
    assert mask.shape == magnitude.shape
    assert 0 <= mask.min() <= mask.max() <= 1
    assert (mask[..., -1] == 0.5).all()


@torch.no_grad()
def test_a_condition_can_be_made_once_and_used_for_many_mixtures(separator):
    magnitude = torch.rand(3, 16, 129)
    condition = separator.condition(torch.randn(2, 16))
    assert condition.shape == (2, sum(layer.out_features for layer in separator.shift_layers()))
    together = separator.mask(magnitude, condition[1:].expand(3, -1))
    alone = separator.mask(magnitude[2:], condition[1:])
    torch.testing.assert_close(together[2:], alone)
    assert not torch.allclose(together, separator.mask(magnitude, condition[:1].expand(3, -1)))


@torch.no_grad()
def test_one_mixture_is_encoded_once_for_many_queries(separator):
    magnitude, conditions = torch.rand(1, 30, 129), separator.condition(torch.randn(3, 16))
    together = separator.predict(*separator.encode_mixture(magnitude), conditions)[:, :30]
    alone = torch.cat([separator.mask(magnitude, condition[None]) for condition in conditions])
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_bfloat16_changes_a_mask_little(separator):
    magnitude, condition = torch.rand(1, 32, 129), separator.condition(torch.randn(1, 16))
    exact = separator.mask(magnitude, condition)
    with torch.autocast("cpu", torch.bfloat16):
        fast = separator.mask(magnitude, condition)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().max() < 0.02


@torch.no_grad()
def test_folding_the_batch_norms_changes_nothing(separator):
    for module in separator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.load_state_dict(module.state_dict() | {"running_mean": torch.randn(module.num_features)})
    mixtures, queries = torch.randn(2, 4096), torch.randn(2, 16)
    before = separator(mixtures, queries)
    separator.fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in separator.modules())
    torch.testing.assert_close(separator(mixtures, queries), before, rtol=0, atol=1e-5)


def test_the_separator_learns(separator):
    separator.train()
    separator(torch.randn(2, 4096), torch.randn(2, 16)).square().sum().backward()
    without = [name for name, parameter in separator.named_parameters() if parameter.grad is None]
    assert not without
