"""Muon: steps of equal size in all directions of a matrix, AdamW for vectors."""

import pytest
import torch

from models.training.muon import STEP_RMS, Muon, orthogonalise


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), (left @ right).flatten(), dim=0) > 0.97
    )


def test_a_step_does_not_depend_on_the_size_of_the_gradient_and_is_as_large_as_one_of_adamw() -> None:
    steps = []
    for size in (1e-4, 1.0, 1e4):
        weight = torch.nn.Parameter(torch.zeros(16, 4, 3, 3))
        weight.grad = size * torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=1.0, weight_decay=0.0).step()
        steps.append(weight.detach().clone())
    assert steps[0].square().mean().sqrt() == pytest.approx(STEP_RMS, rel=0.25)
    for other in (steps[0], steps[2]):
        torch.testing.assert_close(other.norm(), steps[1].norm(), rtol=0.02, atol=0.0)
        assert alike(other, steps[1]) > 0.99


def test_vectors_are_trained_by_adamw() -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    pair = (Muon([ours, torch.nn.Parameter(torch.ones(2, 2))], **options), torch.optim.AdamW([theirs], **options))
    for step in range(3):
        for weight, optimizer in zip((ours, theirs), pair, strict=True):
            weight.grad = torch.full((5,), 1.0 + step)
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.ones(5))


def test_weights_without_a_gradient_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight, torch.ones(3, 3))
