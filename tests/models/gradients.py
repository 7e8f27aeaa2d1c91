"""A program: the gradients of one batch, shared by so many processes. Arguments: processes, file for the gradients."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.fabric import Fabric

from tests.models.test_training_loop import mixer, separator


def main() -> None:
    devices = int(sys.argv[1])
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="32-true")
    fabric.launch()
    learner = separator()
    wrapped, _ = fabric.setup(learner, torch.optim.SGD(learner.parameters(), lr=0.1))
    wrapped.train()
    for module in learner.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of half a batch are others than those of the whole
    loss = wrapped(mixer(absent=0.2).batch(3, fabric.global_rank, fabric.world_size))
    fabric.backward(loss)
    if fabric.is_global_zero:
        torch.save({name: weight.grad for name, weight in learner.network.named_parameters()}, sys.argv[2])
    fabric.barrier()


if __name__ == "__main__":
    main()
