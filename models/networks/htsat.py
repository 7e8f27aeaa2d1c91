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

from models.networks import ENCODER_LEVEL, DetectorOutput
from models.spectrum import loudness, mel_bands, stft

LOWEST_DB = -100.0  # of a band's power
OTHER_REGION = -100.0  # added to the attention between tokens that are adjacent only because of the cyclic shift


@dataclass(frozen=True)
class HyperParameters:
    """Hyperparameters of an `HTSAT`; the defaults are the paper's."""

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
    window_samples: int = 320_000  # of the windows that long recordings are cut into: 10 s
    # The small variant differs in these: the spectrum's window, which it shares with a separator, and a time axis that
    # is neither stretched to `frames` nor merged between stages, so that it keeps every column of the patches.
    window_size: int | None = None  # samples of the spectrum's window; None: as long as the FFT
    merge_time: bool = True
    # RMS of a clip's active frames to which the network brings whatever it hears, so that training, tagging, anchors
    # and queries hear alike; None: the clip as it is, which is what the authors' network was trained on.
    level: float | None = None

    def __post_init__(self) -> None:
        if not self.merge_time and self.runs != 1:
            raise ValueError("time that is not stretched cannot be folded into runs")

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the tokens (H, W) of a stage. Raises ValueError if the sizes do not divide."""
        sides = (self.runs * self.bands, self.frames // self.runs)
        steps = (self.patch[0] << stage, self.patch[1] << (stage if self.merge_time else 0))
        if self.frames % self.runs or sides[0] % steps[0] or sides[1] % steps[1]:
            raise ValueError(f"stage {stage}: an image of {sides} does not divide into tokens of {steps}")
        return sides[0] // steps[0], sides[1] // steps[1]

    def attention(self, stage: int) -> tuple[int, int]:
        """Return the tokens (rows, columns) of an attention window; it is wider in stages with few rows."""
        grid = self.grid(stage)
        rows = min(self.window, grid[0])
        return rows, min(self.window if self.merge_time or rows == self.window else 2 * self.window, grid[1])


ENCODER_COLUMN = 16  # frames of a column of `encode_spectrum`

# A small query encoder: tokens of 20 ms from the first stage to the last.
SMALL = HyperParameters(
    patch=(8, 2),
    runs=1,
    channels=32,
    depths=(2, 2, 2, 2),
    heads=(2, 4, 8, 16),
    window_size=800,
    merge_time=False,
    level=ENCODER_LEVEL,
)


class HTSAT(nn.Module):
    """Detects sounds in clips of up to `frames` frames (10.23 s as published), or of any length without `merge_time`.

    drop_path: share of blocks that are skipped for a clip while training.
    """

    signed_embeddings = True
    reach_rows: int | None = None
    band_filters: Tensor

    def __init__(self, hyper: HyperParameters | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        hyper = hyper or HyperParameters()
        last = len(hyper.depths) - 1
        rows, columns = hyper.grid(last)
        if rows % hyper.runs:
            raise ValueError(f"{rows} rows of the last stage do not unfold into {hyper.runs} runs")
        self.hyper = hyper
        self.rate = hyper.rate
        self.embedding_size = self.map_channels = hyper.channels << last
        self.window_samples = hyper.window_samples
        if hyper.merge_time:
            self.frame_seconds = hyper.window_samples / hyper.rate / hyper.frames
            self.rows_held = hyper.frames // (hyper.runs * columns)
        else:
            self.frame_seconds = hyper.patch[1] * hyper.hop / hyper.rate
            self.rows_held = 1

        filters = mel_bands(hyper.fft_size, hyper.rate, hyper.bands, hyper.lowest_hz, hyper.highest_hz)
        self.register_buffer("band_filters", filters, persistent=False)
        self.band_norm = nn.BatchNorm1d(hyper.bands)
        self.patches = nn.Conv2d(1, hyper.channels, hyper.patch, stride=hyper.patch)
        self.patch_norm = nn.LayerNorm(hyper.channels)
        merged = (2, 2 if hyper.merge_time else 1)
        self.stages = nn.ModuleList(
            Stage(
                hyper.channels << i,
                depth,
                heads,
                self._attention(i),
                hyper.mlp_ratio,
                merged if i < last else None,
                drop_path,
            )
            for i, (depth, heads) in enumerate(zip(hyper.depths, hyper.heads, strict=True))
        )
        self.norm = nn.LayerNorm(self.embedding_size)
        self.head = nn.Conv2d(self.embedding_size, hyper.classes, (rows // hyper.runs, 3), padding=(0, 1))
        self.apply(initialise)

    def _attention(self, stage: int) -> tuple[int, int]:
        """Return the stage's attention window. Raises ValueError if it does not divide the grid."""
        grid, window = self.hyper.grid(stage), self.hyper.attention(stage)
        if grid[0] % window[0] or grid[1] % window[1]:
            raise ValueError(f"a grid of {grid} tokens does not divide into windows of {window}")
        return window

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        """Waveforms (B, T) in [-1, 1] to clipwise (B, classes), framewise (B, frames, classes), embedding (B, D).

        With `merge_time`, clips shorter than the network's own length are repeated and stretched, so framewise always
        has `frames` rows over the clip's duration; raises ValueError for longer clips. Without, framewise has a row for
        every whole column of patches, at least one.
        """
        return self.classify(self.log_bands(waveforms))

    def embed(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) to latent queries (B, D)."""
        return self(waveforms).embedding

    def log_bands(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) to normalised log-mel bands (B, F, M), F = T // hop + 1. Always float32."""
        with torch.autocast(waveforms.device.type, enabled=False):
            hyper = self.hyper
            magnitude = stft(waveforms.float(), hyper.fft_size, hyper.hop, hyper.window_size).abs()
            return self.bands_of(self.at_level(magnitude))

    def at_level(self, magnitude: Tensor) -> Tensor:
        """Return magnitudes (B, F, bins) of whole clips at the level at which the network hears them."""
        hyper = self.hyper
        if hyper.level is None:
            return magnitude
        return magnitude * (hyper.level / loudness(magnitude, hyper.window_size or hyper.fft_size))[:, None, None]

    def bands_of(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B, F, bins) at the network's level to normalised log-mel bands (B, F, M). Always float32."""
        with torch.autocast(magnitude.device.type, enabled=False):
            power = magnitude.square() @ self.band_filters
            decibels = 10 * power.clamp(min=10 ** (LOWEST_DB / 10)).log10()
            return self.band_norm(decibels.transpose(1, 2)).transpose(1, 2)

    def classify(self, bands: Tensor) -> DetectorOutput:
        """Log-mel bands (B, F, M) from `log_bands` to the output. Raises ValueError if F exceeds `frames`."""
        return self.answer(self.tokens(bands))

    def tokens(self, bands: Tensor) -> Tensor:
        """Log-mel bands (B, F, M) to the last stage's tokens (B, H, W, D). Raises ValueError if F exceeds `frames`."""
        tokens = self.patches(self.image(bands)).permute(0, 2, 3, 1)  # B H W C
        tokens = self.patch_norm(tokens)
        for stage in self.stages:
            tokens = stage(tokens)
        if not self.hyper.merge_time:
            tokens = tokens[:, :, : max(1, bands.shape[1] // self.hyper.patch[1])]
        return self.norm(tokens)

    def answer(self, tokens: Tensor) -> DetectorOutput:
        """The last stage's tokens (B, H, W, D) to the output."""
        embedding = tokens.float().mean((1, 2))

        # unfold: the runs move from the frequency axis back to time
        runs = self.hyper.runs
        time = tokens.unflatten(1, (runs, -1)).permute(0, 4, 2, 1, 3).flatten(3)  # B D rows-of-a-run (runs W)
        steps = self.head(time).float().squeeze(2).transpose(1, 2)  # B steps classes
        framewise = steps.sigmoid().repeat_interleave(self.rows_held, dim=1)
        return DetectorOutput(steps.mean(1).sigmoid(), framewise, embedding)

    def encode_spectrum(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """See `networks.QueryEncoder`; for hyperparameters without `merge_time`."""
        tokens = self.tokens(self.bands_of(magnitude)).float()
        columns = tokens.unflatten(2, (-1, ENCODER_COLUMN // self.hyper.patch[1])).mean(3)  # B H columns D
        return columns.permute(0, 3, 2, 1), columns.mean(1)

    def silence(self) -> Tensor:
        """Return the normalised bands (M,) of a silent frame; zeros would be the mean of the training data."""
        norm = self.band_norm
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101  it keeps statistics
        return (LOWEST_DB - norm.running_mean) * (norm.running_var + norm.eps).rsqrt() * norm.weight + norm.bias

    def image(self, bands: Tensor) -> Tensor:
        """Bands (B, F, M) repeated and stretched to `frames`, then folded: (B, 1, runs M, frames / runs). Without
        `merge_time` they are padded with silence to whole windows of attention."""
        frames, runs = self.hyper.frames, self.hyper.runs
        frames_given = bands.shape[1]
        if not self.hyper.merge_time:
            whole = max(frames_given // self.hyper.patch[1], 1) * self.hyper.patch[1]
            bands, frames_given = bands[:, :whole], min(frames_given, whole)
            widest = max(self.hyper.attention(stage)[1] for stage in range(len(self.stages)))
            silence = (
                self.silence().to(bands.dtype).expand(len(bands), -frames_given % (widest * self.hyper.patch[1]), -1)
            )
            padded = torch.cat([bands, silence], dim=1)
            return padded.transpose(1, 2).unsqueeze(1)
        if frames_given > frames:
            raise ValueError(
                f"a clip of {frames_given} frames is longer than the network's {frames}; cut it into windows"
            )
        bands = bands.repeat(1, frames // frames_given, 1).unsqueeze(1)
        bands = F.interpolate(bands, (frames, self.hyper.bands), mode="bicubic", align_corners=True)
        return bands.unflatten(2, (runs, -1)).transpose(3, 4).flatten(2, 3)


class Stage(nn.Module):
    """Blocks of windowed attention, every second shifted; then, unless `merged` is None, patch merging to a smaller
    grid of twice the channels."""

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        window: tuple[int, int],
        mlp_ratio: int,
        merged: tuple[int, int] | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, heads, window, i % 2 == 1, mlp_ratio, drop_path) for i in range(depth)
        )
        self.merge = PatchMerging(channels, merged) if merged else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.merge(tokens)


class Block(nn.Module):
    """Pre-norm transformer block with attention within windows: tokens (B, H, W, C) in and out."""

    def __init__(
        self, channels: int, heads: int, window: tuple[int, int], shifted: bool, mlp_ratio: int, drop_path: float
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shifted)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._apply_drop_path(self.attention(self.attention_norm(tokens)))
        return tokens + self._apply_drop_path(self.mlp(self.mlp_norm(tokens)))

    def _apply_drop_path(self, update: Tensor) -> Tensor:
        """While training, drop the update for a share of the clips (Huang et al., "Stochastic Depth", 2016)."""
        if not (self.training and self.drop_path):
            return update
        kept = torch.rand(len(update), 1, 1, 1, device=update.device) >= self.drop_path
        return update * (kept / (1 - self.drop_path)).to(update.dtype)


class WindowAttention(nn.Module):
    """Attention within windows of (rows, columns) tokens; if `shifted`, after a cyclic shift by half a window, along
    axes that have more than one."""

    pair_rows: Tensor

    def __init__(self, channels: int, heads: int, window: tuple[int, int], shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        self.register_buffer("pair_rows", pair_rows(window), persistent=False)
        self._masks: dict[tuple, Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        batch, height, width, channels = tokens.shape
        down, across = self.window
        rows, columns = height // down, width // across
        # An axis that is a single window needs no shift.
        shift = (self.shifted * (rows > 1) * (down // 2), self.shifted * (columns > 1) * (across // 2))
        if any(shift):
            tokens = tokens.roll((-shift[0], -shift[1]), (1, 2))
        # cut: (3, B, G E, N, C / E); windows are merged with heads, so that fused kernels get four dimensions
        cut = self.qkv(tokens).view(batch, rows, down, columns, across, 3, self.heads, channels // self.heads)
        query, key, value = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 4)
        bias = self.bias((height, width), shift).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.view(batch, rows, columns, self.heads, down, across, -1).permute(0, 1, 4, 2, 5, 3, 6)
        tokens = self.projection(mixed.reshape(batch, height, width, channels))
        return tokens.roll(shift, (1, 2)) if any(shift) else tokens

    def bias(self, grid: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        """Return the bias added to the scores before the softmax: (1, G E, N, N)."""
        bias = self.bias_table[self.pair_rows].permute(2, 0, 1)  # E N N
        if not any(shift):
            windows = grid[0] * grid[1] // (self.window[0] * self.window[1])
            return bias.repeat(windows, 1, 1).unsqueeze(0)
        place = (grid, shift, bias.device)
        masks = self._masks
        if place not in masks:  # computed once for each size and device; another thread may replace it meanwhile
            self._masks = masks = {place: shift_mask(grid, self.window, shift).to(bias.device)}
        return (bias + masks[place].unsqueeze(1)).flatten(0, 1).unsqueeze(0)


class PatchMerging(nn.Module):
    """Concatenation of neighbours in rows x columns, 4C for 2 x 2, then a linear layer to 2C: (B, H, W, C) to
    (B, H / rows, W / columns, 2C)."""

    def __init__(self, channels: int, merged: tuple[int, int]) -> None:
        super().__init__()
        self.merged = merged
        self.norm = nn.LayerNorm(merged[0] * merged[1] * channels)
        self.linear = nn.Linear(merged[0] * merged[1] * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, columns = self.merged
        neighbours = [tokens[:, row::rows, column::columns] for column in range(columns) for row in range(rows)]
        return self.linear(self.norm(torch.cat(neighbours, dim=-1)))


# Constants are created on the CPU explicitly, since a network that is built on torch's "meta" device needs their
# values.


def pair_rows(window: tuple[int, int]) -> Tensor:
    """Return the row of the bias table for each pair (query, key) of tokens in a window, by their distance."""
    row, column = torch.meshgrid(*(torch.arange(side, device="cpu") for side in window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down = row[:, None] - row[None, :] + window[0] - 1
    right = column[:, None] - column[None, :] + window[1] - 1
    return (2 * window[1] - 1) * down + right


def shift_mask(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Return the mask (G, N, N): 0 between tokens that are adjacent in the clip, `OTHER_REGION` between others."""

    def regions(axis: int) -> Tensor:
        # After the shift the last window holds the end of the axis followed by its start.
        place = torch.arange(grid[axis], device="cpu")
        if not shift[axis]:
            return torch.zeros_like(place)
        return (place >= grid[axis] - window[axis]).long() + (place >= grid[axis] - shift[axis]).long()

    (height, width), (down, across) = grid, window
    region = 3 * regions(0)[:, None] + regions(1)[None, :]
    region = region.view(height // down, down, width // across, across).transpose(1, 2).reshape(-1, down * across)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, OTHER_REGION)


def initialise(module: nn.Module) -> None:
    """Initialise a layer as Swin does: narrow normal weights, no bias."""
    if any(weight.is_meta for weight in module.parameters(recurse=False)):
        return  # there is nothing to fill, and torch would load its compiler to clamp it, which takes two seconds
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.bias_table, std=0.02)
