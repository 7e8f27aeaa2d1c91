"""The default preset's separator: a residual U-Net over log-spaced bands, conditioned by FiLM, with a recurrent
bottleneck that also receives the query encoder's features of the mixture.

FiLM: Perez et al. (arXiv 1709.07871). The mask is predicted in bands (one FFT bin each below 1 kHz, about a
quarter tone above) every 10 ms and spread back to the FFT's bins: resolution is not what limits a model of this size,
and bands cost a fifth of bins.
"""

from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import spectrum
from models.networks import ENCODER_LEVEL, QueryEncoder

STRIDE = 16  # frames a column at the bottom of the U-Net: 160 ms, the query encoder's step
PATCH = (4, 2)  # frames x bands of one cell at the top: the stem and the head handle detail inside it
MASK_FLOOR = 0.02  # -34 dB: uncertain bins keep a quiet mixture, and nothing is masked to digital zero


class FilmBlock(nn.Module):
    """x + conv(relu(film(norm(conv(relu(norm(x))))))); the second norm's scale and shift are FiLM's.

    x may be of one mixture for all rows of `film`. scales: False if the query only shifts.
    """

    def __init__(self, channels: int, scales: bool = True) -> None:
        super().__init__()
        self.scales = scales
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2: nn.Module = nn.BatchNorm2d(channels, affine=False)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv2.weight)  # every block begins as the identity

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        hidden = self.norm2(self.conv1(F.relu(self.norm1(x), inplace=True)))
        # In float32 the film would turn everything after it into float32; gradients over a whole image need that.
        film = film if self.training else film.to(hidden.dtype)
        film = film[:, :, None, None]
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            hidden = torch.addcmul(shift, hidden, 1 + scale)
        else:
            hidden = hidden + film
        return self.conv2(F.relu(hidden, inplace=True)).add_(x)


class ResUNet(nn.Module):
    """Mixture and query to a real mask between 0 and 1.

    query_encoder: the detector, frozen; it is shared, not part of this module's state.
    channels, blocks: of each level of the U-Net, from the finest (two bands x 40 ms) down; each halves the bands, and
        all but the last the time.
    scales: False if the query is a bias that is added to every block's channels, as in the paper's separator, instead
        of FiLM's scale and shift.
    """

    rate = 32_000
    fft_size = 1024
    window_size = 800  # the query encoder's 25 ms, so that both share one spectrum
    hop = 320
    mask_bytes = 1 << 20
    query_encoder: QueryEncoder
    to_bands: Tensor
    to_bins: Tensor
    query_mean: Tensor
    query_deviation: Tensor

    def __init__(
        self,
        query_encoder: QueryEncoder,
        bands: int = 128,
        channels: tuple[int, ...] = (32, 64, 128, 256),
        blocks: tuple[int, ...] = (1, 2, 2, 1),
        code: int = 128,
        recurrent: int = 128,
        scales: bool = True,
    ) -> None:
        super().__init__()
        self.__dict__["query_encoder"] = query_encoder  # not registered: its weights are the detector's
        self.query_size = query_encoder.embedding_size
        if len(channels) != 4:
            raise ValueError(f"the query encoder's columns of {STRIDE} frames need four levels, not {len(channels)}")
        rows = bands // 2 ** len(channels)
        to_bands, to_bins = band_matrices(self.fft_size // 2 + 1, bands)
        self.register_buffer("to_bands", to_bands, persistent=False)
        self.register_buffer("to_bins", to_bins, persistent=False)

        self.stem = nn.Conv2d(1, channels[0], (6, 4), stride=PATCH, padding=1)
        self.position = nn.Parameter(torch.zeros(channels[0], 1, bands // 2))
        self.encoder = _levels(channels, blocks, scales)
        self.down = nn.ModuleList(
            nn.Conv2d(wide, narrow, halved, stride=halved)
            for (wide, narrow), halved in zip(pairwise(channels), ((2, 2), (2, 2), (1, 2)), strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(deep, shallow, 1) for shallow, deep in pairwise(channels))
        self.decoder = _levels(channels, blocks, scales)
        self.head_norm = nn.BatchNorm2d(channels[0])
        self.head = nn.Conv2d(channels[0], PATCH[0] * PATCH[1], 1)

        self.ear_norm = nn.BatchNorm2d(query_encoder.map_channels, affine=False)
        self.ear_in = nn.Conv2d(query_encoder.map_channels, code, 1)
        self.ear_mix = nn.Conv2d(2 * code, channels[-1], 1)
        bottom = channels[-1] * rows
        self.recurrent_in = nn.Linear(bottom + 1, 2 * recurrent)
        self.recurrent = nn.GRU(2 * recurrent, recurrent, batch_first=True, bidirectional=True)
        self.recurrent_out = nn.Linear(2 * recurrent, bottom)

        widths = [width for width, count in zip(channels, blocks, strict=True) for _ in range(count)]
        self.film_sizes = [(2 if scales else 1) * width for width in widths + widths[::-1]]
        # `standardise` removes what all sounds have in common, since it hides their differences.
        self.register_buffer("query_mean", torch.zeros(self.query_size))
        self.register_buffer("query_deviation", torch.ones(self.query_size))
        self.query_in = nn.Linear(self.query_size, 2 * code)
        self.query_norm = nn.LayerNorm(2 * code)
        self.query_ear = nn.Linear(2 * code, code)
        self.query_film = nn.Linear(2 * code, sum(self.film_sizes))
        nn.init.normal_(self.query_film.weight, std=0.02)
        nn.init.zeros_(self.query_film.bias)
        nn.init.zeros_(self.recurrent_out.weight)

    def film_places(self) -> dict[str, slice]:
        """Return where each block's scales and shifts are among the rows of `query_film`, by the block's name."""
        widths = [(f"encoder.{level}", blocks) for level, blocks in enumerate(self.encoder)]
        widths += [(f"decoder.{level}", blocks) for level, blocks in reversed(list(enumerate(self.decoder)))]
        names = [f"{level}.{at}" for level, blocks in widths for at, _ in enumerate(blocks.children())]
        ends = list(accumulate(self.film_sizes))
        return {name: slice(end - size, end) for name, size, end in zip(names, self.film_sizes, ends, strict=True)}

    def is_deeper_than(self, other: "ResUNet") -> bool:
        """Return whether this network has all entries of another, of the same shapes, and more blocks."""
        own, others = self.state_dict(), other.state_dict()
        return self.film_places().keys() > other.film_places().keys() and all(
            name in own and (own[name].shape == entry.shape or name.startswith("query_film."))
            for name, entry in others.items()
        )

    def deepen(self, shallow: "ResUNet") -> dict[str, Tensor]:
        """Return a state of this network that answers as one with fewer blocks does: the others are identities.

        Their first convolutions and scales are this network's own, so that a mean of this network and of what it was
        deepened from halves what they add.
        """
        deep = {name: entry.clone() for name, entry in self.state_dict().items()}
        places, before = self.film_places(), shallow.film_places()
        for name in places.keys() - before.keys():
            deep[f"{name}.conv2.weight"].zero_()
        for name, entry in shallow.state_dict().items():
            if name.startswith("query_film."):
                for block, rows in before.items():
                    deep[name][places[block]] = entry[rows]
            else:
                deep[name] = entry
        return deep

    def forward(self, mixtures: Tensor, queries: Tensor) -> Tensor:
        """(B, T) at 32 kHz, (B, D) -> (B, T)."""
        mixture = self.spectrum(mixtures)
        mask = self.mask(mixture.abs(), self.condition(queries))
        return self.waveform(mixture * mask, mixtures.shape[-1])

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> complex (B, frames, 513)."""
        return spectrum.stft(waveforms, self.fft_size, self.hop, self.window_size)

    def waveform(self, masked: Tensor, samples: int) -> Tensor:
        """Complex (B, frames, 513) -> (B, samples)."""
        return spectrum.istft(masked, self.fft_size, self.hop, samples, self.window_size)

    def condition(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, K): direction of the query, code for the feature map, scales and shifts of the blocks."""
        standard = self.standardise(queries)
        code = F.relu(self.query_norm(self.query_in(standard)))
        return torch.cat([F.normalize(standard, dim=1), self.query_ear(code), self.query_film(code)], dim=1)

    def standardise(self, embeddings: Tensor) -> Tensor:
        """Standardise embeddings (..., D) to mean 0 and deviation 1 over the training clips."""
        return ((self._root(embeddings) - self.query_mean) / self.query_deviation).clamp(-5, 5)

    def learn_queries(self, embeddings: Tensor) -> None:
        """Set mean and deviation from the training clips' embeddings (N, D); once, before training."""
        root = self._root(embeddings)
        self.query_mean.copy_(root.mean(0))
        self.query_deviation.copy_(root.std(0).clamp(min=0.02))

    def _root(self, embeddings: Tensor) -> Tensor:
        """Compress the few large values of an embedding. Negative queries may leave the range of a ReLU."""
        within = embeddings if self.query_encoder.signed_embeddings else embeddings.clamp(min=0)
        return within.sign() * within.abs().sqrt()

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        """(B, frames, 513), (B, K) -> (B, frames, 513) between 0 and 1."""
        return self.predict(*self.encode_mixture(magnitude), condition)[:, : magnitude.shape[1]]

    def encode_mixture(self, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features that do not depend on the query: log bands (B, 1, T, bands), the query encoder's map
        (B, channels, T / 16, rows) and the direction of its embeddings in time (B, T / 16, D); frames are padded to
        whole columns."""
        frames = magnitude.shape[1]
        magnitude = F.pad(magnitude, (0, 0, 0, -frames % (2 * STRIDE)))
        rms = spectrum.loudness(magnitude, self.window_size)
        bands = (magnitude.square() / rms.square()[:, None, None]) @ self.to_bands
        log_bands = torch.log10(bands + 1e-2).unsqueeze(1)
        with torch.no_grad():
            feature_map, embeddings = self.query_encoder.encode_spectrum(
                magnitude * (ENCODER_LEVEL / rms)[:, None, None]
            )
            embeddings = F.normalize(self.standardise(embeddings.float()), dim=2)
        return log_bands, feature_map, embeddings

    def predict(self, log_bands: Tensor, feature_map: Tensor, embeddings: Tensor, condition: Tensor) -> Tensor:
        """Features of `encode_mixture`, of B mixtures or of one for all, and condition (B, K) -> mask (B, T, 513)."""
        direction, map_code, film = condition.split(
            [self.query_size, self.ear_in.out_channels, sum(self.film_sizes)], dim=1
        )
        films = list(film.split(self.film_sizes, dim=1))
        x = self.stem(log_bands)
        x = x + self.position.to(x.dtype)
        skips = []
        for level, blocks in enumerate(self.encoder):
            x = self._pass(x, blocks, films)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        x = self._bottom(x, feature_map, embeddings, direction, map_code)
        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                x = F.interpolate(self.up[level](x), size=skips[level].shape[2:]) + skips[level]
            x = self._pass(x, self.decoder[level], films)
        logits = self.head(F.relu(self.head_norm(x))).unflatten(1, PATCH)  # (B, 4, 2, T / 4, bands / 2)
        in_bands = torch.sigmoid(logits.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2).float())
        return (MASK_FLOOR + (1 - MASK_FLOOR) * in_bands) @ self.to_bins

    def fold(self) -> None:
        """Merge batch norms into the convolutions before them, for faster inference. Outputs change by rounding only.

        Irreversible: a folded network can be neither trained nor saved.
        """
        for block in self.modules():
            if isinstance(block, FilmBlock) and isinstance(block.norm2, nn.BatchNorm2d):
                block.conv1, block.norm2 = fuse_conv_bn_eval(block.conv1, block.norm2), nn.Identity()

    @staticmethod
    def _pass(x: Tensor, blocks: nn.Module, films: list[Tensor]) -> Tensor:
        """Apply the blocks of one level; each takes the next scales and shifts."""
        for block in blocks.children():
            x = block(x, films.pop(0))
        return x

    def _bottom(
        self, x: Tensor, feature_map: Tensor, embeddings: Tensor, direction: Tensor, map_code: Tensor
    ) -> Tensor:
        encoded = self.ear_in(self.ear_norm(feature_map))
        weighted = encoded * map_code[:, :, None, None].to(encoded.dtype)
        encoded = self.ear_mix(torch.cat([encoded.expand_as(weighted), weighted], dim=1))
        x = x + F.interpolate(encoded, size=x.shape[2:])
        likeness = embeddings @ direction.unsqueeze(2)  # (B, columns, 1): cosine of the query and each moment
        columns = x.permute(0, 2, 1, 3).flatten(2)
        hidden = F.relu(self.recurrent_in(torch.cat([columns, likeness.to(columns.dtype)], dim=2)))
        with torch.autocast(x.device.type, enabled=False):
            hidden, _ = self.recurrent(hidden.float())
        update = self.recurrent_out(hidden).unflatten(2, (x.shape[1], x.shape[3]))
        return x + update.permute(0, 2, 1, 3).to(x.dtype)


def _levels(channels: tuple[int, ...], blocks: tuple[int, ...], scales: bool) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleList(FilmBlock(width, scales) for _ in range(count))
        for width, count in zip(channels, blocks, strict=True)
    )


def band_matrices(bins: int, bands: int) -> tuple[Tensor, Tensor]:
    """Return matrices from bins to bands (bins, bands), a weighted mean, and back (bands, bins), linear interpolation.

    Centres are one bin apart at the bottom and a constant ratio apart above.
    """

    def centres(ratio: float) -> list[float]:
        places = [1.0]
        while len(places) < bands:
            places.append(max(places[-1] + 1, places[-1] * ratio))
        return places

    low, high = 1.0, 2.0
    for _ in range(60):  # bisection: the last centre grows with the ratio
        middle = (low + high) / 2
        low, high = (middle, high) if centres(middle)[-1] < bins - 1 else (low, middle)
    places = torch.tensor(centres(high), dtype=torch.float64)
    position = torch.arange(bins, dtype=torch.float64).clamp(places[0], places[-1])
    right = torch.searchsorted(places, position).clamp(1, bands - 1)
    weight = (position - places[right - 1]) / (places[right] - places[right - 1])
    back = torch.zeros(bands, bins, dtype=torch.float64)
    back[right, torch.arange(bins)] = weight
    back[right - 1, torch.arange(bins)] += 1 - weight
    return (back / back.sum(1, keepdim=True)).T.float().contiguous(), back.float()
