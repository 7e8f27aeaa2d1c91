"""Anchors: the segment of a clip where a detector's probability of its class is highest (Chen et al., AAAI 2022, 3.1).

Labels are of whole clips. The detector's framewise curve of the class, summed over the length of a segment, is largest
where the segment should be cut.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from models.compute.precision import device_of
from models.corpus.clips import RATE, Clip, Clips
from models.labels import classes
from models.networks import Detector
from models.runs.clip_embeddings import fingerprint

BATCH = 16


def load(detector: Detector, clips: Clips, folder: Path, seconds: float = 2.0) -> np.ndarray:
    """Return the anchors of `mine`, cached in `folder` by detector and clips."""
    path = folder / f"{fingerprint(detector, clips, f'anchors {seconds}')}.npy"
    if path.exists():
        return np.load(path)
    found = mine(detector, clips, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, found)
    partial.replace(path)
    return found


@torch.inference_mode()
def mine(detector: Detector, clips: Clips, seconds: float = 2.0) -> np.ndarray:
    """Return the first sample (clips,) of each clip's segment of `seconds`; 0 if the clip is not longer than that.

    Clips of classes outside the detector's 527 are anchored in the middle. Clips longer than the detector's window are
    processed in consecutive windows.
    """
    column = {label.mid: at for at, label in enumerate(classes())}
    frames = int(seconds * RATE)
    starts = np.array([max(0, clip.frames - frames) // 2 for clip in clips.clips])
    longer = [
        index for index, clip in enumerate(clips.clips) if clip.frames > frames and column.keys() & set(clip.mids)
    ]
    for first in range(0, len(longer), BATCH):
        batch = longer[first : first + BATCH]
        curves = _curves(detector, clips, [clips.clips[index] for index in batch])
        for index, curve in zip(batch, curves, strict=True):
            clip = clips.clips[index]
            wanted = [column[mid] for mid in clip.mids if mid in column]
            starts[index] = loudest_stretch(curve[:, wanted].mean(1), detector.frame_seconds, frames, clip.frames)
    return starts


def loudest_stretch(curve: np.ndarray, frame_seconds: float, frames: int, whole: int) -> int:
    """Return the first of the `frames` samples, of `whole`, over which the sum of a curve (F,) is highest."""
    width = max(1, round(frames / RATE / frame_seconds))
    sums = np.convolve(curve, np.ones(width), "same")
    # Of equal sums take the middle one, for flat curves.
    highest = np.flatnonzero(sums >= sums.max() - 1e-6)
    centre = (highest[len(highest) // 2] + 0.5) * frame_seconds * RATE
    return int(np.clip(centre - frames / 2, 0, whole - frames))


def _curves(detector: Detector, clips: Clips, chosen: list[Clip]) -> list[np.ndarray]:
    """Return the framewise curve (F, 527) of each clip over its own length."""
    device = device_of(detector)  # pyright: ignore[reportArgumentType]  detectors are modules
    size = detector.window_samples
    windows, owners = [], []
    for number, clip in enumerate(chosen):
        for part in torch.from_numpy(clips.waveform(clip)).split(size):
            windows.append(F.pad(part, (0, size - len(part))))
            owners.append(number)
    framewise = detector(torch.stack(windows).to(device)).framewise.float().cpu().numpy()
    curves = []
    for number, clip in enumerate(chosen):
        rows = math.ceil(clip.frames / RATE / detector.frame_seconds)
        curves.append(np.concatenate([framewise[at] for at, owner in enumerate(owners) if owner == number])[:rows])
    return curves
