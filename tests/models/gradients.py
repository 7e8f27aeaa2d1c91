"""A program: the gradients of one batch, shared by two processes. Argument: file for the gradients.

The second process is a fork: to import what both need takes 8 s of a processor.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.fabric import Fabric
from torch import Tensor

from tests.models.small_separator import mixer, separator


def gradients(fabric: Fabric) -> dict[str, Tensor | None]:
    """Return the gradients of a batch of which each process of `fabric` has a part."""
    torch.set_num_threads(1)
    learner = separator()
    wrapped, _ = fabric.setup(learner, torch.optim.SGD(learner.parameters(), lr=0.1))
    wrapped.train()
    for module in learner.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of half a batch are others than those of the whole
    loss = wrapped(mixer(absent=0.2).batch(3, fabric.global_rank, fabric.world_size))
    fabric.backward(loss)
    return {name: weight.grad for name, weight in learner.network.named_parameters()}


def save(fabric: Fabric, path: str) -> None:
    """Save the gradients that all processes have."""
    assert fabric.world_size == 2
    found = gradients(fabric)
    if fabric.is_global_zero:
        torch.save(found, path)
    fabric.barrier()


if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork", precision="32-true").launch(
        partial(save, path=sys.argv[1])
    )
