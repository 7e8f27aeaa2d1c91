"""Validation during training: the mixtures of a separator, and the mean average precision of a detector."""

import numpy as np
import torch
from torch import nn
from torchmetrics.functional.classification import multilabel_average_precision

from models.compute.precision import device_of
from models.console import progress_console
from models.corpus.clips import RATE, Clips
from models.errors import CorpusInvalid, SilentQuery
from models.labels import classes
from models.queries.query import QueryRules, cut
from models.runs.run_folder import Place
from models.training.detector import LabelTargets
from models.validation import mixtures

SECONDS = 2.56  # of each clip, from its beginning: the length of training examples
BATCH = 32
WATCHED = 40  # validation mixtures that are drawn if the committed list is of another corpus


@torch.inference_mode()
def mean_average_precision(detector: nn.Module, clips: Clips) -> float:
    """Return the mean over the classes of the clips' labels; ancestors of a label count as present too.

    `evaluate tagging` measures it with intervals.
    """
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


def validation_clips(place: Place) -> Clips | None:
    """Return the clips of a run's split `valid`; None if its corpus has none."""
    try:
        return place.clips("valid")
    except (FileNotFoundError, CorpusInvalid):
        return None


def validation_mixtures(place: Place, rules: QueryRules) -> list[mixtures.Mixture]:
    """Return the validation mixtures of a run: the committed list without held-out classes or, for another corpus, some
    drawn from its split `valid`; none if it has none. Rows whose examples are silent by the rules are left out."""
    clips = validation_clips(place)
    if clips is None:
        return []
    there = {clip.key for clip in clips.clips}
    listed = mixtures.read()
    rows = [row for row in listed if {row.target, row.interference, row.query, row.absent} <= there]
    if len(rows) < len(listed) // 2:
        try:
            rows = mixtures.draw(clips, min(WATCHED, 2 * len(clips.clips)))  # of few clips, more are the same again
        except ValueError as fault:
            progress_console.print(f"the run is not validated: {fault}")
            return []
    return [
        row for row in mixtures.render(rows, clips) if all(_is_audible(clip, rules) for clip in (row.query, row.absent))
    ]


def _is_audible(clip: np.ndarray, rules: QueryRules) -> bool:
    try:
        cut(torch.from_numpy(clip), RATE, rules)
    except SilentQuery:
        return False
    return True
