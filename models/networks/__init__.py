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

    def __call__(self, waveforms: Tensor) -> DetectorOutput: ...

    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows of a query recording (B, T) -> (B, D)."""
        ...


class Separator(Protocol):
    """Masks the spectrogram of a mixture for one query.

    A query is conditioned once and a mixture transformed once; `forward(mixtures (B, T), queries (B, D))`
    wraps the steps for tests and benchmarks.
    """

    rate: int
    query_size: int
    fft_size: int
    hop: int

    def __call__(self, mixtures: Tensor, queries: Tensor) -> Tensor: ...

    def condition(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, K), all conditioning values of a query side by side."""
        ...

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> complex (B, frames, bins)."""
        ...

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        """(B, frames, bins), (B, K) -> real (B, frames, bins), at least 0."""
        ...

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        """Complex (B, frames, bins) -> (B, samples)."""
        ...
