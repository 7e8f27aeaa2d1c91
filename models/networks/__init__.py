"""Networks, one file an architecture.

Every detector answers with `DetectorOutput`; what a separator offers is listed in `Separator`.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class DetectorOutput(NamedTuple):
    """What a detector hears in a batch of clips.

    clipwise: (B, C) probability of each class anywhere in the clip.
    framewise: (B, F, C) probability of each class in each frame.
    embedding: (B, D) the latent query of the clip.
    """

    clipwise: Tensor
    framewise: Tensor
    embedding: Tensor


class Detector(Protocol):
    """Hears AudioSet's 527 classes in waveforms (B, T) in [-1, 1] at `rate`."""

    rate: int
    embedding_size: int
    window_samples: int  # what the timeline of a long recording feeds at once
    frame_seconds: float  # one framewise row of such a window: row i covers [i, i + 1) * frame_seconds
    rows_held: int  # how many rows one step of the network fills: the others only repeat the first

    def __call__(self, waveforms: Tensor) -> DetectorOutput: ...

    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows of a query recording (B, T) -> (B, D)."""
        ...


class QueryEncoder(Detector, Protocol):
    """A detector that a separator may listen with while it separates: it hears what the separator's spectrum shows.

    Both use an FFT of 1024 at 32 kHz under a window of 800 samples (25 ms) every 320.
    """

    map_channels: int
    signed_embeddings: bool  # False where they end in a ReLU

    def encode_spectrum(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (B, frames, 513), frames a multiple of 32, of mixtures at the level at which the ear hears -> a
        map (B, map_channels, columns, rows) and embeddings (B, columns, D), a column every 16 frames (160 ms)."""
        ...


class Separator(Protocol):
    """Masks the spectrogram of a mixture for one query.

    A query is conditioned once, a mixture transformed and listened to once, and only `predict` runs for every pair of
    them; `forward(mixtures (B, T), queries (B, D))` wraps the steps for tests and benchmarks.
    """

    rate: int
    query_size: int
    fft_size: int
    hop: int
    mask_bytes: int  # memory that `predict` works in, about, for each second of each mask

    def __call__(self, mixtures: Tensor, queries: Tensor) -> Tensor: ...

    def condition(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, K), all conditioning values of a query side by side."""
        ...

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> complex (B, frames, bins)."""
        ...

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        """(B, frames, bins), (B, K) -> real (B, frames, bins), at least 0: `listen` and `predict` in one."""
        ...

    def encode_mixture(self, magnitude: Tensor) -> tuple[Tensor, ...]:
        """(B, frames, bins) -> what does not depend on the query, each (B, ...)."""
        ...

    def predict(self, *heard_and_condition: Tensor) -> Tensor:
        """What `listen` heard, of B mixtures or of one for all, and conditions (B, K) -> mask (B, frames, bins).

        It may have more frames than the mixture: padding."""
        ...

    def fold(self) -> None:
        """Merge what can be merged for faster inference; answers change by rounding only. For good: neither training
        nor saving afterwards."""
        ...

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        """Complex (B, frames, bins) -> (B, samples)."""
        ...
