"""Networks, one file an architecture.

Every detector returns a `DetectorOutput`; `Separator` is the interface of separators.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

# RMS of every mixture, example and clip for the query encoder: -22 dBFS.
ENCODER_LEVEL = 10 ** (-22 / 20)


class DetectorOutput(NamedTuple):
    """A detector's output for a batch of clips.

    clipwise: (B, C) probability of each class anywhere in the clip.
    framewise: (B, F, C) probability of each class in each frame.
    embedding: (B, D) the latent query of the clip.
    """

    clipwise: Tensor
    framewise: Tensor
    embedding: Tensor


class Detector(Protocol):
    """Detects AudioSet's 527 classes in waveforms (B, T) in [-1, 1] at `rate`."""

    rate: int
    embedding_size: int
    window_samples: int  # length of the windows that long recordings are cut into
    frame_seconds: float  # one framewise row of such a window: row i covers [i, i + 1) * frame_seconds
    rows_held: int  # rows of one step of the network: all but the first are repeats
    reach_rows: int | None  # neighbours on each side that a row depends on, in a clip of any length; None: all of them

    def __call__(self, waveforms: Tensor) -> DetectorOutput: ...

    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows of a query recording (B, T) -> (B, D)."""
        ...


class QueryEncoder(Detector, Protocol):
    """A detector that also encodes the spectra of a separator's mixtures.

    Both use an FFT of 1024 at 32 kHz with a window of 800 samples (25 ms) and a hop of 320.
    """

    map_channels: int
    signed_embeddings: bool  # False where they end in a ReLU

    def encode_spectrum(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (B, frames, 513), frames a multiple of 32, of mixtures at the encoder's level -> a feature map
        (B, map_channels, columns, rows) and embeddings (B, columns, D), a column every 16 frames (160 ms)."""
        ...


class Separator(Protocol):
    """Masks the spectrogram of a mixture for one query.

    `condition` runs once for each query, `spectrum` and `encode_mixture` once for each mixture, and only `predict` for
    every pair; `forward(mixtures (B, T), queries (B, D))` wraps the steps for tests and benchmarks.
    """

    rate: int
    query_size: int
    fft_size: int
    hop: int
    mask_bytes: int  # approximate memory of `predict` for each second of each mask

    def __call__(self, mixtures: Tensor, queries: Tensor) -> Tensor: ...

    def condition(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, K), all conditioning values of a query concatenated."""
        ...

    def spectrum(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> complex (B, frames, bins)."""
        ...

    def mask(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        """(B, frames, bins), (B, K) -> real (B, frames, bins), at least 0: `encode_mixture` and `predict` in one."""
        ...

    def encode_mixture(self, magnitude: Tensor) -> tuple[Tensor, ...]:
        """(B, frames, bins) -> the features that do not depend on the query, each (B, ...)."""
        ...

    def predict(self, *features_and_condition: Tensor) -> Tensor:
        """Features of `encode_mixture`, of B mixtures or one for all, and conditions (B, K) -> mask (B, frames, bins).

        The mask may have more frames than the mixture: padding."""
        ...

    def fold(self) -> None:
        """Merge layers for faster inference; outputs change by rounding only. Irreversible: the network can neither be
        trained nor saved afterwards."""
        ...

    def waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        """Complex (B, frames, bins) -> (B, samples)."""
        ...
