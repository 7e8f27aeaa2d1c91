"""Plot of the spectrograms of mixture, stem and residual."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

SIZE, HOP = 1024, 256
FLOOR_DB, HIGHEST_HZ = -75.0, 16_000


def draw(recordings: dict[str, np.ndarray], rate: int, path: Path) -> None:
    """Write a PNG with a spectrogram for each recording, mono (samples,) in [-1, 1], all on the same color scale."""
    spectra = {title: _decibels(samples) for title, samples in recordings.items()}
    loudest = max(spectrum.max() for spectrum in spectra.values())
    figure, axes = pyplot.subplots(
        len(spectra), 1, figsize=(9, 2.1 * len(spectra)), sharex=True, layout="constrained", squeeze=False
    )
    image = None
    for axis, (title, spectrum) in zip(axes[:, 0], spectra.items(), strict=True):
        image = axis.imshow(
            spectrum - loudest,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=FLOOR_DB,
            vmax=0,
            extent=(0, spectrum.shape[1] * HOP / rate, 0, rate / 2000),
        )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
        axis.set_ylim(0, min(HIGHEST_HZ, rate / 2) / 1000)
    axes[-1, 0].set_xlabel("seconds")
    if image is not None:
        figure.colorbar(image, ax=axes[:, 0], label="dB", shrink=0.6)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _decibels(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(samples, (SIZE // 2, SIZE))
    frames = np.lib.stride_tricks.sliding_window_view(padded, SIZE)[::HOP] * np.hanning(SIZE)
    return 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T + 1e-7)
