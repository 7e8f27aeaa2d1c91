"""The paper's detector: a hierarchical token-semantic audio transformer.

Chen et al., "HTS-AT: A Hierarchical Token-Semantic Audio Transformer for Sound Classification and Detection",
ICASSP 2022; the query encoder of Chen et al., "Zero-shot Audio Source Separation through Query-based Learning from
Weakly-labeled Data", AAAI 2022. The attention is that of Liu et al., "Swin Transformer", ICCV 2021.

Letters in shapes: B clips, T samples, F frames, M mel bands, H x W tokens (frequency x time), C channels,
G windows of tokens, N tokens in a window, E heads, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import DetectorOutput
from models.spectrum import mel_bands, stft

OTHER_REGION = -100.0  # added to the attention between tokens that only the cyclic shift made neighbours


@dataclass(frozen=True)
class HyperParameters:
    """What fixes the shape of an `HTSAT`; the defaults are the paper's."""

    rate: int = 32_000  # Hz
    fft_size: int = 1024
    hop: int = 320  # samples; 10 ms
    bands: int = 64
    lowest_hz: float = 50
    highest_hz: float = 14_000
    frames: int = 1024  # of a clip, after stretching
    runs: int = 4  # pieces of time that are stacked on the frequency axis
    patch: tuple[int, int] = (4, 4)  # bands x frames of a token
    channels: int = 256  # of the first stage; every further stage has twice as many
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8  # tokens on a side
    mlp_ratio: int = 4
    classes: int = 527
    window_samples: int = 320_000  # what a long recording is cut into: 10 s

    def grid(self, stage: int) -> tuple[int, int]:
        """Tokens (H, W) of a stage; ValueError if the sizes do not divide."""
        sides = (self.runs * self.bands, self.frames // self.runs)
        steps = (self.patch[0] << stage, self.patch[1] << stage)
        if self.frames % self.runs or sides[0] % steps[0] or sides[1] % steps[1]:
            raise ValueError(f"stage {stage}: an image of {sides} does not divide into tokens of {steps}")
        return sides[0] // steps[0], sides[1] // steps[1]


class HTSAT(nn.Module):
    """Hears sounds in clips of up to `frames` frames (10.23 s as published)."""

    band_filters: Tensor

    def __init__(self, hyper: HyperParameters | None = None) -> None:
        super().__init__()
        hyper = hyper or HyperParameters()
        last = len(hyper.depths) - 1
        rows, columns = hyper.grid(last)
        if rows % hyper.runs:
            raise ValueError(f"{rows} rows of the last stage do not unfold into {hyper.runs} runs")
        self.hyper = hyper
        self.rate = hyper.rate
        self.embedding_size = hyper.channels << last
        self.window_samples = hyper.window_samples
        self.frame_seconds = hyper.window_samples / hyper.rate / hyper.frames
        self.rows_held = hyper.frames // (hyper.runs * columns)

        filters = mel_bands(hyper.fft_size, hyper.rate, hyper.bands, hyper.lowest_hz, hyper.highest_hz)
        self.register_buffer("band_filters", filters, persistent=False)
        self.band_norm = nn.BatchNorm1d(hyper.bands)
        self.patches = nn.Conv2d(1, hyper.channels, hyper.patch, stride=hyper.patch)
        self.patch_norm = nn.LayerNorm(hyper.channels)
        self.stages = nn.ModuleList(
            Stage(hyper.channels << i, hyper.grid(i), depth, heads, hyper.window, hyper.mlp_ratio, merged=i < last)
            for i, (depth, heads) in enumerate(zip(hyper.depths, hyper.heads, strict=True))
        )
        self.norm = nn.LayerNorm(self.embedding_size)
        self.head = nn.Conv2d(self.embedding_size, hyper.classes, (rows // hyper.runs, 3), padding=(0, 1))
        self.apply(initialise)

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        """Waveforms (B, T) in [-1, 1] to clipwise (B, classes), framewise (B, frames, classes), embedding (B, D).

        Clips shorter than the network's own length are repeated and stretched, so framewise always has `frames`
        rows over the clip's duration. ValueError for clips that are longer.
        """
        return self.hear(self.log_bands(waveforms))

    def embed(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) to latent queries (B, D)."""
        return self(waveforms).embedding

    def log_bands(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) to normalised log-mel bands (B, F, M), F = T // hop + 1. Always float32."""
        with torch.autocast(waveforms.device.type, enabled=False):
            power = stft(waveforms.float(), self.hyper.fft_size, self.hyper.hop).abs().square()
            decibels = 10 * (power @ self.band_filters).clamp(min=1e-10).log10()
            return self.band_norm(decibels.transpose(1, 2)).transpose(1, 2)

    def hear(self, bands: Tensor) -> DetectorOutput:
        """Log-mel bands (B, F, M) from `log_bands` to what is heard in them. ValueError if F exceeds `frames`."""
        tokens = self.patches(self.image(bands)).permute(0, 2, 3, 1)  # B H W C
        tokens = self.patch_norm(tokens)
        for stage in self.stages:
            tokens = stage(tokens)
        tokens = self.norm(tokens)
        embedding = tokens.float().mean((1, 2))

        # unfold: the runs come back from the frequency axis, one after another in time
        runs = self.hyper.runs
        time = tokens.unflatten(1, (runs, -1)).permute(0, 4, 2, 1, 3).flatten(3)  # B D rows-of-a-run (runs W)
        steps = self.head(time).float().squeeze(2).transpose(1, 2)  # B steps classes
        framewise = steps.sigmoid().repeat_interleave(self.hyper.frames // steps.shape[1], dim=1)
        return DetectorOutput(steps.mean(1).sigmoid(), framewise, embedding)

    def image(self, bands: Tensor) -> Tensor:
        """Bands (B, F, M) repeated and stretched to `frames`, then folded: (B, 1, runs M, frames / runs)."""
        frames, runs = self.hyper.frames, self.hyper.runs
        heard = bands.shape[1]
        if heard > frames:
            raise ValueError(f"a clip of {heard} frames is longer than the network's {frames}; cut it into windows")
        bands = bands.repeat(1, frames // heard, 1).unsqueeze(1)
        bands = F.interpolate(bands, (frames, self.hyper.bands), mode="bicubic", align_corners=True)
        return bands.unflatten(2, (runs, -1)).transpose(3, 4).flatten(2, 3)


class Stage(nn.Module):
    """Blocks of windowed attention, every second shifted; if `merged`, then half the grid and twice the channels."""

    def __init__(
        self, channels: int, grid: tuple[int, int], depth: int, heads: int, window: int, mlp_ratio: int, merged: bool
    ) -> None:
        super().__init__()
        window = min(window, *grid)
        if grid[0] % window or grid[1] % window:
            raise ValueError(f"a grid of {grid} tokens does not divide into windows of {window}")
        # A grid that is one window has no borders to look across.
        shift = 0 if grid == (window, window) else window // 2
        self.blocks = nn.ModuleList(
            Block(channels, grid, heads, window, shift if i % 2 else 0, mlp_ratio) for i in range(depth)
        )
        self.merge = PatchMerging(channels) if merged else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.merge(tokens)


class Block(nn.Module):
    """Pre-norm transformer block whose attention sees one window: tokens (B, H, W, C) in and out."""

    def __init__(
        self, channels: int, grid: tuple[int, int], heads: int, window: int, shift: int, mlp_ratio: int
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, grid, heads, window, shift)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class WindowAttention(nn.Module):
    """Attention within windows of `window` x `window` tokens, after a cyclic shift by `shift` up and left."""

    pair_rows: Tensor
    mask: Tensor | None

    def __init__(self, channels: int, grid: tuple[int, int], heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("pair_rows", pair_rows(window), persistent=False)
        self.register_buffer("mask", shift_mask(grid, window, shift) if shift else None, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, height, width, channels = tokens.shape
        rows, columns, side = height // self.window, width // self.window, self.window
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), (1, 2))
        # cut: (3, B, G E, N, C / E); windows stand beside heads so that fused kernels see four dimensions
        cut = self.qkv(tokens).view(batch, rows, side, columns, side, 3, self.heads, channels // self.heads)
        query, key, value = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias(rows * columns).to(query.dtype))
        mixed = mixed.view(batch, rows, columns, self.heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        tokens = self.projection(mixed.reshape(batch, height, width, channels))
        return tokens.roll((self.shift, self.shift), (1, 2)) if self.shift else tokens

    def bias(self, windows: int) -> Tensor:
        """What is added to the scores before the softmax: (1, G E, N, N)."""
        bias = self.bias_table[self.pair_rows].permute(2, 0, 1)  # E N N
        if self.mask is None:
            return bias.repeat(windows, 1, 1).unsqueeze(0)
        return (bias + self.mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)


class PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, 4C, then linearly to 2C: (B, H, W, C) to (B, H / 2, W / 2, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.linear = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        neighbours = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.linear(self.norm(torch.cat(neighbours, dim=-1)))


# Constants are made on the CPU by name: a network that is built on torch's "meta" device, to be filled from a file,
# needs them all the same.


def pair_rows(window: int) -> Tensor:
    """For each pair (query, key) of tokens in a window, the row of the bias table that their distance selects."""
    place = torch.arange(window, device="cpu")
    row, column = torch.meshgrid(place, place, indexing="ij")
    row, column = row.flatten(), column.flatten()
    down = row[:, None] - row[None, :] + window - 1
    right = column[:, None] - column[None, :] + window - 1
    return (2 * window - 1) * down + right


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """(G, N, N): 0 between tokens that are neighbours in the sound, `OTHER_REGION` between the others."""

    def regions(side: int) -> Tensor:
        # After the shift the last window holds the end of the axis and, behind it, what came round from the start.
        place = torch.arange(side, device="cpu")
        return (place >= side - window).long() + (place >= side - shift).long()

    height, width = grid
    region = 3 * regions(height)[:, None] + regions(width)[None, :]
    region = region.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window**2)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, OTHER_REGION)


def initialise(module: nn.Module) -> None:
    """Swin's initialisation for a network to be trained: narrow normal weights, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.bias_table, std=0.02)
