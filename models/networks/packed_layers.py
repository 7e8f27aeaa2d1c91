"""Layers packed for inference on a CPU: the sums of those that they replace, in less time.

A packed layer holds its weights in the number format that it computes in and in the order in which oneDNN reads them;
an unpacked one brings them into that order at every call. Images are in channels-last layout.

Letters in shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONE = [1, 1]
# An image of this size stands for all: without one, oneDNN expects another order for 1 x 1 convolutions of many
# channels than it chooses in the end, and a call of them takes 40 times as long.
_EXPECTED_SIZE = [16, 16]
# Weights that are held in bfloat16 beside float32. Above are those of the paper's last stage: over half of its weights,
# and a sixth of its products.
_MOST_TWICE = 1 << 22


class RectifiedConvolution(nn.Conv2d):
    """A convolution and its ReLU, which a packed layer computes in one pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input), inplace=True)


class PackedConvolution(nn.Module):
    """A convolution of stride 1, and with `relu` its ReLU: (B, C, H, W) of any type to `dtype`, float32 or bfloat16."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], dtype: torch.dtype, relu: bool = False
    ) -> None:
        super().__init__()
        self._dtype = dtype
        self._activation = "relu" if relu else "none"
        self._padding = list(padding)
        # Not registered: packed weights cannot be moved, saved or converted.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach().to(dtype, memory_format=torch.contiguous_format),
            self._padding,
            _ONE,
            _ONE,
            1,
            [1, weight.shape[1], *_EXPECTED_SIZE],
        )
        self._bias = None if bias is None else bias.detach().to(dtype)

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype, relu: bool = False) -> "PackedConvolution":
        assert not isinstance(layer.padding, str)  # noqa: S101
        return cls(layer.weight, layer.bias, layer.padding, dtype, relu)

    def forward(self, image: Tensor) -> Tensor:
        image = in_channels_last(image, self._dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            image, self._weight, self._bias, self._padding, _ONE, _ONE, 1, self._activation, [], ""
        )


class PackedPixels(nn.Module):
    """ReLU of a 1 x 1 convolution with bias, as a packed linear layer, whose weights have one order for images of any
    size: (B, C, H, W) to `dtype`.

    Image by image: in a batch, equal ones would round apart.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().flatten(1).to(dtype).contiguous(), None)
        self._bias = bias.detach().to(dtype)
        self._dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        pixels = in_channels_last(image, self._dtype).permute(0, 2, 3, 1)
        outputs = [
            torch.ops.mkldnn._linear_pointwise(one, self._weight, self._bias, "relu", [], "") for one in pixels.split(1)
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).permute(0, 3, 1, 2)


def in_channels_last(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an image (B, C, H, W). One of a single channel has both layouts, and oneDNN would answer in the other:
    its strides are made to say which."""
    image = image.to(dtype, memory_format=torch.channels_last)
    _, channels, height, width = image.shape
    if channels > 1:
        return image
    return image.contiguous().as_strided(image.shape, (height * width, 1, width, 1))


class PackedUpsampling(nn.Module):
    """ReLU of a transposed 3 x 3 convolution of stride 2 with bias, plus a shift, without the last row and column of
    its output: (B, C, H, W) to (B, C', 2H, 2W), joined with another image.

    An even row of the output sees two rows of the input, an odd one sees one, and columns alike. So it is four
    convolutions, of 2 x 2, 2 x 1, 1 x 2 and 1 x 1, whose outputs interleave: no product is wasted, and oneDNN's own
    primitive takes 2 to 15 times as long. They are written to their places in the joined image at once.
    """

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert layer.bias is not None  # noqa: S101  of a folded network
        self._dtype, self._channels = dtype, layer.out_channels
        weight = layer.weight.detach().transpose(0, 1)  # (C', C, 3, 3)
        taps = ([2, 0], [1])  # of even and odd outputs, from the input's earlier row to the later
        self.phases = nn.ModuleList(
            PackedConvolution(
                weight[:, :, taps[row]][:, :, :, taps[column]], layer.bias, (1 - row, 1 - column), dtype, relu=True
            )
            for row, column in ((0, 0), (0, 1), (1, 0))
        )
        self.phases.append(PackedPixels(weight[:, :, 1:2, 1:2], layer.bias, dtype))

    def forward(self, image: Tensor, skip: Tensor, shift: Tensor) -> Tensor:
        """(B, C, H, W), skip (B, S, 2H, 2W) and shift (B, C', 1, 1) -> (B, C' + S, 2H, 2W)."""
        (batch, _, height, width), channels = image.shape, self._channels + skip.shape[1]
        # Channels-last: a pixel's channels lie next to each other.
        joined = skip.new_empty(batch, 2 * height, 2 * width, channels, dtype=self._dtype).permute(0, 3, 1, 2)
        joined[:, self._channels :] = skip
        image = image.to(self._dtype, memory_format=torch.channels_last)
        shift, upsampled = shift.to(self._dtype), joined[:, : self._channels]
        for number, phase in enumerate(self.phases):
            place = upsampled[:, :, number // 2 :: 2, number % 2 :: 2]
            torch.add(phase(image)[:, :, :height, :width], shift, out=place)
        return joined


def pack_convolution(layer: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> nn.Module:
    """Return the packed layer that replaces a convolution of a folded network and the ReLU after it."""
    if isinstance(layer, nn.ConvTranspose2d):
        return PackedUpsampling(layer, dtype)
    return PackedConvolution.of(layer, dtype, relu=True)


class PackedLinear(nn.Module):
    """A linear layer with weights for float32 and, if `half`, other ones for bfloat16 under autocast.

    In float32, oneDNN takes half the time of the library that torch uses for unpacked layers on AMD's processors.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, half: bool) -> None:
        """layer: of a 1 x 1 convolution, the linear layer of each pixel's channels."""
        super().__init__()
        self._activation = "relu" if isinstance(layer, RectifiedConvolution) else "none"
        weight = layer.weight.detach().flatten(1)
        self._weights = {
            dtype: (
                torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None),
                None if layer.bias is None else layer.bias.detach().to(dtype),
            )
            for dtype in ([torch.float32, torch.bfloat16] if half else [torch.float32])
        }

    def forward(self, tokens: Tensor) -> Tensor:
        dtype = _dtype_around(self._weights)
        return torch.ops.mkldnn._linear_pointwise(tokens.to(dtype), *self._weights[dtype], self._activation, [], "")


def _dtype_around(weights: Mapping[torch.dtype, object]) -> torch.dtype:
    """Return the number format to compute in: autocast's, if there are weights for it."""
    half = torch.bfloat16 in weights and torch.is_autocast_enabled("cpu")
    return torch.bfloat16 if half else torch.float32


class PackedPointwise(nn.Module):
    """A 1 x 1 convolution, (B, C, H, W) to (B, C', H, W), as a packed linear layer, whose weights have one order for
    images of any size. An unpacked one in one thread and a small batch is left to the slower library."""

    def __init__(self, layer: nn.Conv2d, half: bool) -> None:
        super().__init__()
        self._linear = PackedLinear(layer, half)

    def forward(self, image: Tensor) -> Tensor:
        return self._linear(image.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class PackedRectified(nn.Module):
    """A convolution of one channel each or of few, of any stride, and its ReLU, (B, C, H, W) to (B, C', H', W'): the
    same numbers as unpacked ones give, without a pass over the image for the ReLU."""

    def __init__(self, layer: RectifiedConvolution, half: bool) -> None:
        super().__init__()
        assert layer.bias is not None and not isinstance(layer.padding, str)  # noqa: S101
        self._layout = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
        self._weights = {
            dtype: (
                torch.ops.mkldnn._reorder_convolution_weight(
                    layer.weight.detach().to(dtype, memory_format=torch.contiguous_format),
                    *self._layout,
                    [1, layer.in_channels, *_EXPECTED_SIZE],
                ),
                layer.bias.detach().to(dtype),
            )
            for dtype in ([torch.float32, torch.bfloat16] if half else [torch.float32])
        }

    def forward(self, image: Tensor) -> Tensor:
        dtype = _dtype_around(self._weights)
        return torch.ops.mkldnn._convolution_pointwise(
            in_channels_last(image, dtype), *self._weights[dtype], *self._layout, "relu", [], ""
        )


def pack_linear_layers(network: nn.Module, half: bool) -> None:
    """Replace a network's linear layers by packed ones; `half`: with second weights in bfloat16, unless they are large.
    Irreversible."""
    for name in [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]:
        layer = cast(nn.Linear, network.get_submodule(name))
        network.set_submodule(name, PackedLinear(layer, half and layer.weight.numel() <= _MOST_TWICE))


def pack_convolutions(network: nn.Module, half: bool) -> None:
    """Replace a network's 1 x 1 convolutions, and all those that end in a ReLU, by packed ones; `half`: with second
    weights in bfloat16. Irreversible."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
            network.set_submodule(name, PackedPointwise(layer, half))
        elif isinstance(layer, RectifiedConvolution):
            network.set_submodule(name, PackedRectified(layer, half))


def pack_square_convolutions(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace a network's 3 x 3 convolutions of stride 1 by packed ones that compute in `dtype`. Irreversible."""
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            continue
        if layer.kernel_size == (3, 3) and layer.stride == (1, 1):
            network.set_submodule(name, PackedConvolution.of(layer, dtype))
