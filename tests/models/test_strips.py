"""Layers in strips of rows compute what they do with the whole image."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from models.networks.strips import JoinedStrips, Striped, join, rows_of

WIDTH = 1 << 13  # strips of such rows have 8, those of two images 4


def striped(image: Tensor, layers: Iterable[torch.nn.Module]) -> Striped:
    return Striped(list(layers), rows_of(image), image.shape[0], *image.shape[2:])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("height", [2, 8, 10, 26, 40])
@torch.inference_mode()
def test_strips_joined_are_the_image_of_all_layers(height: int, batch: int) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(2, 2, 3, padding=1) for _ in range(6)))
    image = torch.randn(batch, 2, height, WIDTH)
    made = striped(image, layers)
    strips = list(made.strips())
    assert len(strips) == -(-height * batch // 8)
    assert all(strip.shape[2] % 2 == 0 for strip in strips)
    expected = layers(image)
    torch.testing.assert_close(join(iter(strips), height), expected)
    torch.testing.assert_close(made(1, height - 1), expected[:, :, 1:-1])


def test_strips_are_joined_in_channels_last_layout() -> None:
    joined = JoinedStrips(4)
    for strip in torch.randn(1, 3, 4, 5).split(2, dim=2):
        joined.append(strip)
    assert joined.image.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_layers_see_a_strip_with_its_neighbours_only() -> None:
    seen: list[int] = []

    def layer(image: Tensor) -> Tensor:
        seen.append(image.shape[2])
        return image

    image = torch.randn(1, 1, 40, WIDTH)
    for _ in Striped([layer, layer], rows_of(image), 1, 40, WIDTH).strips():
        pass
    assert seen == [10, 9, *[12, 10] * 3, 10, 9]
