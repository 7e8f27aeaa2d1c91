"""Muon: an optimizer that gives every direction of a weight matrix the same step.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); scale of the steps after Liu et al.,
"Muon is Scalable for LLM Training" (arXiv 2502.16982).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz's iteration: steep at zero, so that five rounds are enough
STEP_RMS = 0.2  # of a step at a learning rate of 1: about AdamW's, so that both share a learning rate
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon for matrices and convolutions, AdamW for all other weights.

    A convolution is a matrix with a row for each output channel. Options are AdamW's.
    """

    def __init__(self, weights: Iterable[nn.Parameter], **options: Any) -> None:
        every = list(weights)
        groups = [
            {"params": [weight for weight in every if weight.ndim in (2, 4)], "momentum": MOMENTUM},
            {"params": [weight for weight in every if weight.ndim not in (2, 4)], "momentum": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if group["momentum"] else ():
                if weight.grad is not None:
                    self._step_matrix(weight, weight.grad, group)
                    weight.grad = None  # done: AdamW skips it
        return super().step(closure)

    def _step_matrix(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
        state["step"] += 1  # AdamW expects one when it loads a state
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalise(gradient.lerp(average, group["momentum"]).flatten(1))
        rate = group["lr"]
        weight.mul_(1 - rate * group["weight_decay"])
        weight.add_(direction.view(weight.shape), alpha=-rate * STEP_RMS * max(direction.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return about U V^T for a matrix U S V^T: its singular values become 0.7 to 1.2."""
    linear, cubic, quintic = QUINTIC
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = wide.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = linear * x + (cubic * gram + quintic * gram @ gram) @ x
    return (x if wide is matrix else x.T).to(matrix.dtype)
