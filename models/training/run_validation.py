"""A detector's mean average precision during training; `evaluate tagging` measures it with intervals."""

import numpy as np
import torch
from torch import nn
from torchmetrics.functional.classification import multilabel_average_precision

from models.compute.precision import device_of
from models.corpus.clips import RATE, Clips
from models.labels import classes
from models.training.detector import LabelTargets

SECONDS = 2.56  # of each clip, from its beginning: the length of training examples
BATCH = 32


@torch.inference_mode()
def mean_average_precision(detector: nn.Module, clips: Clips) -> float:
    """Return the mean over the classes of the clips' labels; ancestors of a label count as present too."""
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
