"""A detector's mean average precision, watched while it trains; `evaluate tagging` measures it for good."""

import numpy as np
import torch
from torch import nn
from torchmetrics.functional.classification import multilabel_average_precision

from models.corpus.clips import RATE, Clips
from models.labels import classes
from models.precision import device_of
from models.training.detector import LabelTargets

SECONDS = 2.56  # heard of each clip, from its beginning: as long as what detectors learn from
BATCH = 32


@torch.inference_mode()
def mean_average_precision(detector: nn.Module, clips: Clips) -> float:
    """Over the classes that the clips are labelled with; a class above a label counts as there too."""
    size = int(SECONDS * RATE)
    device = device_of(detector)
    wanted, _ = LabelTargets()([frozenset(clip.mids) for clip in clips.clips], torch.device("cpu"))
    labelled = {mid for clip in clips.clips for mid in clip.mids}
    columns = [at for at, label in enumerate(classes()) if label.mid in labelled]
    scores = []
    for first in range(0, len(clips.clips), BATCH):
        batch = np.zeros((len(clips.clips[first : first + BATCH]), size), np.float32)
        for row, clip in zip(batch, clips.clips[first : first + BATCH], strict=True):
            samples = clips.waveform(clip)[:size]
            row[: len(samples)] = samples
        scores.append(detector(torch.from_numpy(batch).to(device)).clipwise.float().cpu())
    found = multilabel_average_precision(
        torch.cat(scores)[:, columns], wanted[:, columns].long(), num_labels=len(columns), average="macro"
    )
    return float(found)
