import pytest
import torch

from models.separation import wiener


def spectrum(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def refine(mixture: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the refined sources (J, ..., T, F)."""
    return mixture * wiener.shares(mixture, magnitudes.clone())


@pytest.mark.parametrize("scale", [20.0, 300.0])
def test_refined_sources_add_up_to_the_mixture(scale):
    mixture = scale * spectrum(0, 2, 30, 40)
    magnitudes = scale * spectrum(1, 3, 2, 30, 40).abs()
    refined = refine(mixture, magnitudes)
    assert refined.shape == (3, 2, 30, 40)
    # The regularisation of the equations takes up to 3e-5 of power from what has little.
    assert (refined.sum(dim=0) - mixture).abs().max() < 3e-3 * mixture.abs().max()


def test_refinement_follows_the_published_equations():
    mixture, magnitudes = 20 * spectrum(0, 30, 40), 20 * spectrum(1, 2, 30, 40).abs()
    y = mixture * magnitudes / (1e-9 + magnitudes.sum(0))
    a = max(1.0, float(mixture.abs().max()) / 8)
    x, y = mixture / a, y / a
    v = y.abs() ** 2
    r = v.sum(dim=1) / (1e-9 + v.sum(dim=1))
    expected = a * x * v * r[:, None] / (1e-9**0.5 + (v * r[:, None]).sum(0))
    assert torch.allclose(refine(mixture, magnitudes), expected, rtol=1e-4, atol=1e-5)


def test_one_target_alone_would_be_the_mixture_and_with_the_residual_is_not():
    mixture = spectrum(0, 30, 40) + 2
    half = torch.full((1, 30, 40), 0.5)
    alone, both = (refine(mixture, wiener.magnitudes(mixture[None], half, exhaustive)) for exhaustive in (True, False))
    assert torch.allclose(alone[0], mixture, atol=1e-3)
    assert torch.allclose(both[0], both[1], atol=1e-3)


def test_the_residual_is_never_negative():
    mixture = spectrum(0, 30, 40)
    magnitudes = wiener.magnitudes(mixture[None], torch.full((1, 30, 40), 2.0), exhaustive=False)
    assert magnitudes.shape == (2, 1, 30, 40)
    assert magnitudes[1].abs().max() == 0


def test_silence_stays_silence():
    refined = refine(torch.zeros(10, 10, dtype=torch.complex64), torch.zeros(2, 10, 10))
    assert refined.abs().max() == 0
