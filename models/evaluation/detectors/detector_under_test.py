"""The detector under test: a model's detector alone, on its device."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from models import checkpoints, detection
from models.audio import resample
from models.checkpoints import load_authors
from models.compute.precision import Arithmetic
from models.labels import CLASSES, classes
from models.runs import run_folder
from models.separation.detector_runner import DetectorRunner

DetectorAlone = Annotated[
    Path | None,
    typer.Option("--detector", help="The authors' htsat_audioset_2048d.ckpt, or a detector's run.", exists=True),
]

# Shorter clips are padded with silence to this, since networks need a minimum length.
LEAST_SECONDS = 1.0


class DetectorUnderTest:
    """A detector with its name. class_mids: the mids of the classes that it predicts."""

    def __init__(self, name: str, detector: Any, device: str = "auto") -> None:
        self.name = name
        self._detector = detector
        self._arithmetic = Arithmetic.of(device)
        self._arithmetic.prepare(detector)
        self._runner = DetectorRunner(detector, self._arithmetic)
        columns = getattr(detector, "class_indices", torch.arange(CLASSES)).tolist()
        self.class_mids = frozenset(classes()[column].mid for column in columns)

    @classmethod
    def load(cls, weights: str | Path, detector: Path | None = None, device: str = "auto") -> "DetectorUnderTest":
        """Load the detector of a shipped model or a folder; or `detector`: the authors' file, or a detector's run.

        Raises CheckpointInvalid, FileNotFoundError.
        """
        if detector is not None and detector.is_dir():
            run_folder.read_setup(detector)
            return cls(detector.name, run_folder.load_query_encoder(detector), device)
        if detector is not None:
            return cls(detector.name, load_authors(detector)[0], device)
        bundle = checkpoints.load(weights)
        return cls(bundle.model_id, bundle.detector, device)

    @torch.inference_mode()
    def clipwise(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """Return the probability of each of the 527 classes (527,) in a mono clip (n,).

        A clip longer than the detector's window is cut into adjacent windows, the last one moved back to end with the
        clip; the highest probability counts.
        """
        samples = self._at_own_rate(waveform, rate)
        least = round(LEAST_SECONDS * self._detector.rate)
        samples = torch.nn.functional.pad(samples, (0, max(least - len(samples), 0)))
        size = min(self._detector.window_samples, len(samples))
        starts = [*range(0, len(samples) - size, size), len(samples) - size]
        with self._arithmetic.float32():
            outputs = [
                self._detector(samples[None, start : start + size].to(self._arithmetic.device)).clipwise[0]
                for start in starts
            ]
        return torch.stack(outputs).amax(0).float().cpu().numpy()

    def curve(self, waveform: np.ndarray, rate: int) -> tuple[Tensor, float]:
        """Return the framewise curve (F, 527) of a mono recording (n,), as `detect` computes it, and seconds a row."""
        samples = self._at_own_rate(waveform, rate)
        found, _ = detection.framewise(self._detector, [samples], self._runner.framewise)
        return found, detection.row_seconds(self._detector)

    def _at_own_rate(self, waveform: np.ndarray, rate: int) -> Tensor:
        return resample(torch.from_numpy(waveform)[None], rate, self._detector.rate)[0]
