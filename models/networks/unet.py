"""The paper's separator: a U-Net on magnitude spectrograms, conditioned on a query.

Chen et al., "Zero-shot Audio Source Separation through Query-based Learning from Weakly-labeled Data", AAAI 2022,
after Kong et al., "Source Separation with Weakly Labelled Data", ICASSP 2020.

Letters in shapes: B mixtures, T samples, C channels of a level, D query, K conditioning values. Images are
(B, C, frames, bins).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.packed_layers import pack_convolution
from models.networks.strips import JoinedStrips, Layer, Rows, Striped, join, rows_of
from models.spectrum import istft, stft

NORM_MOMENTUM = 0.01  # of all batch norms, as published


@dataclass(frozen=True)
class HyperParameters:
    """Hyperparameters of a `UNet`; the defaults are the paper's."""

    rate: int = 32_000  # Hz
    fft_size: int = 2048
    hop: int = 320  # samples; 10 ms
    query_size: int = 2048
    channels: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)  # of the levels; the centre has twice the last


class UNet(nn.Module):
    """Estimates a mask of 0 to 1 for each time-frequency bin of a mixture, for one query.

    A linear function of the query is added to the channels of every convolution block.
    """

    def __init__(self, hyper: HyperParameters | None = None) -> None:
        super().__init__()
        hyper = hyper or HyperParameters()
        self.hyper = hyper
        self.rate, self.query_size = hyper.rate, hyper.query_size
        self.fft_size, self.hop = hyper.fft_size, hyper.hop
        # Three images of the first level at once, in float32.
        self.mask_bytes = 3 * 4 * hyper.channels[0] * (hyper.fft_size // 2) * hyper.rate // hyper.hop
        channels, size = hyper.channels, hyper.query_size
        if (hyper.fft_size // 2) % (1 << len(channels)):
            raise ValueError(f"{hyper.fft_size // 2} bins cannot be halved {len(channels)} times")

        self.bin_norm = nn.BatchNorm1d(hyper.fft_size // 2 + 1, momentum=NORM_MOMENTUM)
        self.encoder = nn.ModuleList(
            ConvBlock(before, after, size) for before, after in zip((1, *channels), channels, strict=False)
        )
        self.centre = ConvBlock(channels[-1], 2 * channels[-1], size)
        upwards = channels[::-1]
        self.decoder = nn.ModuleList(
            UpBlock(before, after, size) for before, after in zip((2 * upwards[0], *upwards), upwards, strict=False)
        )
        self.last = ConvBlock(channels[0], channels[0], size)
        self.logits = nn.Conv2d(channels[0], 1, 1)
        self.packed = False

    def forward(self, mixtures: Tensor, queries: Tensor) -> Tensor:
        """Mixtures (B, T) and queries (B, D) to estimates (B, T), with the mixture's phase."""
        spectrum = self.spectrum(mixtures)
        mask = self.mask(spectrum.abs(), self.condition(queries))
        return self.waveform(mask * spectrum, mixtures.shape[-1])

    def condition(self, queries: Tensor) -> Tensor:
        """Queries (B, D) to the values that the blocks add to their channels, concatenated: (B, K)."""
        return torch.cat([layer(queries) for layer in self.shift_layers()], dim=-1)

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) to a complex spectrum (B, frames, bins)."""
        return stft(waveforms, self.fft_size, self.hop)

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        """Complex spectrum (B, frames, bins) to waveforms (B, samples)."""
        return istft(spectrum, self.fft_size, self.hop, samples)

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        """Magnitude (B, frames, bins) and condition (B, K) to a mask (B, frames, bins) from 0 to 1, float32.

        The highest bin has no place in the halving grid; its mask is 0.5, as published.
        """
        return self.predict(*self.encode_mixture(magnitude), condition)[:, : magnitude.shape[1]]

    def encode_mixture(self, magnitude: Tensor) -> tuple[Tensor]:
        """Magnitude (B, frames, bins) to the first image (B, 1, T, bins - 1), frames padded to what can be halved."""
        image = self.bin_norm(magnitude.transpose(1, 2)).transpose(1, 2)[:, None, :, :-1]
        return (F.pad(image, (0, 0, 0, -magnitude.shape[1] % (1 << len(self.encoder)))),)

    def predict(self, image: Tensor, condition: Tensor) -> Tensor:
        """Features of `encode_mixture`, of B mixtures or one for all, and condition (B, K) to a mask (B, T, bins)."""
        sizes = [layer.out_features for layer in self.shift_layers()]
        shifts = iter(condition.float()[:, :, None, None].split(sizes, dim=1))
        image = image.expand(len(condition), -1, -1, -1)
        logits = self._packed_logits(image, shifts) if self.packed else self._logits(image, shifts)
        return F.pad(logits.squeeze(1), (0, 1)).sigmoid()

    def _logits(self, image: Tensor, shifts: Iterator[Tensor]) -> Tensor:
        """First image and the shifts of all layers to the logits (B, 1, T, bins - 1)."""
        # An image is let go as soon as the next one is there: at full resolution they are most of the memory.
        skips = []
        for block in self.encoder:
            compute = run if skips else in_float32
            for layer in layers(block, shifts):
                image = compute(layer, image)
            skips.append(image)
            image = F.avg_pool2d(image, 2)
        for layer in layers(self.centre, shifts):
            image = run(layer, image)
        for up in self.decoder:
            compute = run if len(skips) > 1 else in_float32
            image = compute(up, image, skips.pop(), next(shifts))
            for layer in layers(up.get_submodule("block"), shifts):
                image = compute(layer, image)
        for layer in layers(self.last, shifts):
            image = in_float32(layer, image)
        return in_float32(self.logits, image)

    def _packed_logits(self, image: Tensor, shifts: Iterator[Tensor]) -> Tensor:
        """The same, in the number formats of the packed layers and in strips. No image of full resolution is in memory
        whole: what the encoder makes of the first is computed again for the decoder."""
        skips: list[Rows] = []
        for block in self.encoder:
            skip, image = encode(layers(block, shifts), image, kept=bool(skips))
            skips.append(skip)
        for layer in layers(self.centre, shifts):
            image = layer(image)
        for up in self.decoder[:-1]:
            upsample = partial(up, shift=next(shifts))
            strips = decode(upsample, layers(up.get_submodule("block"), shifts), image, skips.pop())
            image = join(strips, 2 * image.shape[2])
        up = self.decoder[-1]
        upsample = partial(up, shift=next(shifts))
        of_both = [*layers(up.get_submodule("block"), shifts), *layers(self.last, shifts)]
        strips = decode(upsample, of_both, image, skips.pop())
        return join((in_float32(self.logits, strip) for strip in strips), 2 * image.shape[2])

    def fold(self) -> None:
        """Merge the batch norms into the convolutions, for faster inference. Outputs change by rounding only.

        Irreversible: a folded network can be neither trained nor saved.
        """
        for block in self.modules():
            if isinstance(block, (ConvBlock, UpBlock)):
                fold_norms(block)

    def pack(self, dtype: torch.dtype, float32: Collection[str] = ()) -> None:
        """Fold, and pack the convolutions for a CPU (`models.networks.packed_layers`), to compute in `dtype`.

        float32: names of the blocks that stay in float32, such as "encoder.0" or "last". Block by block, so that of
        weights in a mapped file only one block's are in memory twice. Irreversible.
        """
        blocks = [(name, block) for name, block in self.named_modules() if isinstance(block, (ConvBlock, UpBlock))]
        for name, block in blocks:
            fold_norms(block)
            block.packed = True
            of_block = torch.float32 if any(f"{name}.".startswith(f"{prefix}.") for prefix in float32) else dtype
            for layer in ("up", "conv1", "conv2"):
                if hasattr(block, layer):
                    setattr(block, layer, pack_convolution(getattr(block, layer), of_block))
        self.packed = True

    @property
    def full_resolution(self) -> tuple[str, ...]:
        """The names of the blocks at full resolution, which determine the estimate's noise: see `in_float32`."""
        return "encoder.0", f"decoder.{len(self.decoder) - 1}", "last"

    def shift_layers(self) -> list[nn.Linear]:
        """Return the linear layers of the query, in the order in which `mask` uses their outputs."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


class ConvBlock(nn.Module):
    """Twice: 3 x 3 convolution, batch norm, ReLU, plus the query's shift."""

    packed = False

    def __init__(self, before: int, after: int, query_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after, momentum=NORM_MOMENTUM)
        self.shift1 = nn.Linear(query_size, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after, momentum=NORM_MOMENTUM)
        self.shift2 = nn.Linear(query_size, after)

    def first(self, image: Tensor, shift: Tensor) -> Tensor:
        return rectify_and_shift(self.norm1(self.conv1(image)), shift, rectified=self.packed)

    def second(self, image: Tensor, shift: Tensor) -> Tensor:
        return rectify_and_shift(self.norm2(self.conv2(image)), shift, rectified=self.packed)


class UpBlock(nn.Module):
    """A transposed convolution that doubles frames and bins, its output beside the encoder's image; and the block over
    both, which `UNet.predict` calls."""

    packed = False

    def __init__(self, before: int, after: int, query_size: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(after, momentum=NORM_MOMENTUM)
        self.shift = nn.Linear(query_size, after)
        self.block = ConvBlock(2 * after, after, query_size)

    def forward(self, image: Tensor, skip: Tensor, shift: Tensor) -> Tensor:
        """skip: the encoder's image, of twice the frames and bins."""
        if self.packed:
            return self.up(image, skip, shift)
        image = rectify_and_shift(self.norm(self.up(image)), shift)
        image = image[:, :, : skip.shape[2], : skip.shape[3]]  # without the last row and column
        return torch.cat([image, skip], dim=1)


def layers(block: nn.Module, shifts: Iterator[Tensor]) -> tuple[Layer, Layer]:
    """Return the two layers of a `ConvBlock` with the next of the shifts; both in one would keep its input until the
    end."""
    assert isinstance(block, ConvBlock)  # noqa: S101  a module list does not know
    return partial(block.first, shift=next(shifts)), partial(block.second, shift=next(shifts))


def encode(layers: Sequence[Layer], image: Tensor, kept: bool) -> tuple[Rows, Tensor]:
    """Return the rows of what a block's layers make of an image, `kept` or else computed again whenever they are read,
    and the mean of every 2 x 2 of its pixels."""
    batch, _, height, width = image.shape
    made = Striped(layers, rows_of(image), batch, height, width)
    whole, halved = JoinedStrips(height), JoinedStrips(height // 2)
    for strip in made.strips():
        halved.append(F.avg_pool2d(strip, 2))
        if kept:
            whole.append(strip)
    return rows_of(whole.image) if kept else made, halved.image


def decode(
    upsample: Callable[[Tensor, Tensor], Tensor], layers: Sequence[Layer], image: Tensor, skip: Rows
) -> Iterator[Tensor]:
    """Return strips of what layers make of an image, upsampled, beside the encoder's."""

    def read(first: int, last: int) -> Tensor:
        # Of the upsampled rows, an even one depends on the image's row before its own too.
        start, end = max(first // 2 - 1, 0), (last + 1) // 2
        joined = upsample(image[:, :, start:end], skip(2 * start, 2 * end))
        return joined[:, :, first - 2 * start : last - 2 * start]

    batch, _, height, width = image.shape
    return Striped(layers, read, batch, 2 * height, 2 * width).strips()


def rectify_and_shift(image: Tensor, shift: Tensor, rectified: bool = False) -> Tensor:
    """Apply ReLU, unless the image is `rectified`, and add the shift. `image` is overwritten: at full resolution
    memory limits the speed."""
    shift = shift.to(image.dtype)
    image = image if rectified else image.relu_()
    return image + shift if torch.is_grad_enabled() else image.add_(shift)


def fold_norms(block: ConvBlock | UpBlock) -> None:
    """Merge a block's batch norms, not those of the block in it, into its convolutions."""
    for name, norm_name in (("up", "norm"), ("conv1", "norm1"), ("conv2", "norm2")):
        norm = getattr(block, norm_name, None)
        if isinstance(norm, nn.BatchNorm2d):
            fold_norm(getattr(block, name), norm)
            setattr(block, norm_name, nn.Identity())


@torch.no_grad()
def fold_norm(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Merge a batch norm into the convolution before it, in place: a copy of the largest weights is 150 MB."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101  it keeps statistics
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    outputs = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    layer.weight.mul_(scale.view(outputs))
    layer.bias = nn.Parameter(norm.bias - norm.running_mean * scale)


def run(layer: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Return the layer's output, in the number format of autocast."""
    return layer(*images)


def in_float32(layer: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Return the layer's output in float32, even under autocast.

    Blocks at full resolution determine the estimate's noise: with them in bfloat16 it lies 23 dB below the exact
    output, without 42 dB.
    """
    with torch.autocast(images[0].device.type, enabled=False):
        return layer(*(image.float() for image in images))
