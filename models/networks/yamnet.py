"""YAMNet, the query encoder of the default preset: a MobileNet trained on the whole of AudioSet.

Howard et al., "MobileNets" (arXiv 1704.04861), as trained by Google on AudioSet (Apache-2.0). Batch norms are
folded into the convolutions, so that a layer is a convolution and a ReLU.

Its input is 16 kHz in frames of 25 ms every 10 ms. At 32 kHz a frame has twice the samples, and an FFT of twice the
size has the same bins below 8 kHz at twice the magnitude: no resampling is needed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import spectrum
from models.networks import DetectorOutput
from models.networks.packed_layers import RectifiedConvolution

BANDS = 64
PATCH_FRAMES = 96  # 0.96 s
HOP_FRAMES = 48  # 0.48 s
HEARD_RATE = 16_000
HEARD_FFT = 512
HEARD_WINDOW = 400
HEARD_HOP = 160
LOG_OFFSET = 1e-3
# (stride, channels) of the depthwise-separable blocks
BLOCKS = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    *((1, 512),) * 5,
    (2, 1024),
    (1, 1024),
)
MAP_BLOCKS = 11  # blocks until the 512-channel map, one column every 16 frames (160 ms), 4 rows


class Yamnet(nn.Module):
    """Waveforms (B, T) at `rate` in [-1, 1] to AudioSet's classes.

    rate: 16 000 (as published) or 32 000 Hz.
    class_indices: index among the 527 classes of each of the network's 521 outputs; the others are 0.
    probabilities: queries are the classes' probabilities instead of the latent embedding, to measure what that costs.
    """

    map_channels = 512
    signed_embeddings = False
    frame_seconds = HOP_FRAMES * HEARD_HOP / HEARD_RATE
    rows_held = 1
    reach_rows: int | None = 1
    class_indices: Tensor
    mel: Tensor
    window: Tensor

    def __init__(
        self, class_indices: list[int], rate: int = 32_000, classes: int = 527, probabilities: bool = False
    ) -> None:
        super().__init__()
        if rate % HEARD_RATE:
            raise ValueError(f"rate must be a multiple of {HEARD_RATE} Hz, not {rate}")
        self.rate = rate
        self.scale = rate // HEARD_RATE
        self.classes_out = classes
        self.probabilities = probabilities
        self.window_samples = 20 * HOP_FRAMES * HEARD_HOP * self.scale  # 9.6 s
        self.stem = RectifiedConvolution(1, 32, 3, stride=2)
        channels = [32] + [width for _, width in BLOCKS]
        self.depthwise = nn.ModuleList(
            RectifiedConvolution(c, c, 3, stride, padding=2 - stride, groups=c)
            for c, (stride, _) in zip(channels, BLOCKS, strict=False)
        )
        self.pointwise = nn.ModuleList(
            RectifiedConvolution(c, width, 1) for c, (_, width) in zip(channels, BLOCKS, strict=False)
        )
        self.classes = nn.Linear(channels[-1], len(class_indices))
        self.embedding_size = len(class_indices) if probabilities else channels[-1]
        self.register_buffer("class_indices", torch.tensor(class_indices), persistent=False)
        self.register_buffer("mel", htk_mel_matrix(), persistent=False)
        self.register_buffer("window", torch.hann_window(HEARD_WINDOW * self.scale), persistent=False)

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        """Clips of any length; row i of `framewise` is a patch of 0.96 s centred on [i, i + 1) * 0.48 s."""
        hop = HEARD_HOP * self.scale
        rows = max(1, math.ceil(waveforms.shape[-1] / (HOP_FRAMES * hop)))
        frames = (rows - 1) * HOP_FRAMES + PATCH_FRAMES
        before = (PATCH_FRAMES - HOP_FRAMES) // 2 * hop
        samples = (frames - 1) * hop + HEARD_WINDOW * self.scale
        padded = F.pad(waveforms, (before, samples - before - waveforms.shape[-1]))
        patches = self.log_mel(padded).unfold(1, PATCH_FRAMES, HOP_FRAMES).transpose(2, 3)  # (B, rows, frames, bands)
        scores, latent = self.score_patches(patches.flatten(0, 1))
        embedding = _mean_of_rows(scores if self.probabilities else latent, rows)
        scores = scores.unflatten(0, (-1, rows))
        framewise = scores.new_zeros(*scores.shape[:2], self.classes_out)
        framewise[..., self.class_indices] = scores
        return DetectorOutput(framewise.amax(1), framewise, embedding)

    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows (B, T) -> queries (B, D), with patches from their beginnings."""
        hop = HEARD_HOP * self.scale
        least = (PATCH_FRAMES - 1) * hop + HEARD_WINDOW * self.scale
        padded = F.pad(waveforms, (0, max(0, least - waveforms.shape[-1])))
        patches = self.log_mel(padded).unfold(1, PATCH_FRAMES, HOP_FRAMES).transpose(2, 3)
        latent = self.embed_patches(patches.flatten(0, 1))
        return _mean_of_rows(self._scores(latent) if self.probabilities else latent, patches.shape[1])

    def score_patches(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel patches (N, 96, 64) -> scores (N, 521) and embeddings (N, 1024)."""
        embedding = self.embed_patches(patches)
        return self._scores(embedding), embedding

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N, 96, 64) -> embeddings (N, 1024)."""
        return self.deep(self.map(patches)).mean((2, 3))

    def _scores(self, embeddings: Tensor) -> Tensor:
        return torch.sigmoid(self.classes(embeddings))

    def score_embeddings(self, embeddings: Tensor) -> Tensor:
        """Queries (N, D) -> the classes' probabilities (N, 521); of a mean of patches, those of its embedding."""
        return embeddings if self.probabilities else self._scores(embeddings)

    def encode_spectrum(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """See `networks.QueryEncoder`; the feature map is that of `map`, an embedding covers two columns (320 ms)."""
        log_mel = self.log_mel_of_magnitude(magnitude[..., : self.mel.shape[0]] / self.scale)
        feature_map = self.map(log_mel)
        embeddings = self.deep(feature_map).float().mean(3).transpose(1, 2)
        if self.probabilities:
            embeddings = torch.sigmoid(self.classes(embeddings).float())
        return torch.log1p(feature_map), embeddings.repeat_interleave(2, dim=1)

    def map(self, log_mel: Tensor) -> Tensor:
        """Log-mel (B, frames, 64) -> the 512-channel map (B, 512, frames / 16, 4), of any number of frames."""
        return self._blocks(self.stem(pad_end(log_mel.unsqueeze(1))), 0, MAP_BLOCKS)

    def deep(self, feature_map: Tensor) -> Tensor:
        """Feature map -> the last layer's (B, 1024, frames / 32, 2), whose mean is the embedding."""
        return self._blocks(feature_map, MAP_BLOCKS, len(BLOCKS))

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, frames, 64); frame i begins at sample i * hop."""
        size = HEARD_FFT * self.scale
        margin = (size - HEARD_WINDOW * self.scale) // 2  # torch.stft centres the window in the FFT
        frames = torch.stft(
            F.pad(waveforms, (margin, margin)),
            size,
            HEARD_HOP * self.scale,
            HEARD_WINDOW * self.scale,
            self.window,
            center=False,
            return_complex=True,
        )
        magnitude = spectrum.power(frames[:, : HEARD_FFT // 2 + 1]).sqrt().transpose(1, 2)
        return self.log_mel_of_magnitude(magnitude / self.scale)

    def log_mel_of_magnitude(self, magnitude: Tensor) -> Tensor:
        """Magnitude (B, frames, 257) up to 8 kHz as at 16 kHz -> (B, frames, 64)."""
        return torch.log(magnitude @ self.mel + LOG_OFFSET)

    def _blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        for index in range(first, last):
            if BLOCKS[index][0] == 2:
                x = pad_end(x)
            x = self.pointwise[index](self.depthwise[index](x))
        return x


def _mean_of_rows(patches: Tensor, rows: int) -> Tensor:
    """Vectors of the patches of windows of `rows` patches each (B * rows, D) -> their means (B, D)."""
    return patches.unflatten(0, (-1, rows)).mean(1)


def pad_end(x: Tensor) -> Tensor:
    """Apply the "same" padding of a 3x3 convolution of stride 2, the odd element at the end (bottom, right)."""
    height, width = x.shape[-2:]
    down, across = (1 if size % 2 == 0 else 2 for size in (height, width))
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


def htk_mel_matrix(lowest: float = 125.0, highest: float = 7500.0) -> Tensor:
    """Return HTK mel bands (257, 64) of an FFT of 512 at 16 kHz, triangles on the mel scale, nothing at 0 Hz."""

    def mel(frequency: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(frequency / 700.0)

    bins = mel(torch.linspace(0, HEARD_RATE / 2, HEARD_FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = (mel(torch.tensor(value, dtype=torch.float64)) for value in (lowest, highest))
    edges = low + (high - low) * torch.arange(BANDS + 2, dtype=torch.float64) / (BANDS + 1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    matrix = torch.minimum(rising, falling).clamp(min=0)
    matrix[0] = 0
    return matrix.float()


def from_teacher(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of `Yamnet` from tensors with separate batch norms (`conv1.*`, `block2.*` ..., `classes.*`)."""

    def fold(name: str) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(tensors[f"{name}.variance"] + 1e-4)
        return tensors[f"{name}.kernel"] * scale[:, None, None, None], (
            tensors[f"{name}.beta"] - tensors[f"{name}.mean"] * scale
        )

    state = {}
    layers = [("stem", "conv1")]
    for index in range(len(BLOCKS)):
        layers += [(f"{kind}.{index}", f"block{index + 2}.{kind}") for kind in ("depthwise", "pointwise")]
    for ours, theirs in layers:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = fold(theirs)
    state["classes.weight"], state["classes.bias"] = tensors["classes.weight"], tensors["classes.bias"]
    return state
