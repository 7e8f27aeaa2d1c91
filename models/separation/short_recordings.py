"""Separation of several recordings that fit one window each, in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.audio import Waveform, resample
from models.separation.detector_runner import Decision, PresenceTracker, decide_together
from models.separation.long_recordings import Masking, Source, Window, Windows, cut


@dataclass(frozen=True)
class RecordingFile:
    """A file, and the folder and the beginning of the names of its stems."""

    path: Path
    folder: Path
    source_name: str


@dataclass(frozen=True)
class ShortRecording:
    """A recording that fits one window. resampled: (C, n) at the separator's rate; peak: its highest amplitude; mask:
    its channels' speakers."""

    file: RecordingFile
    recording: Waveform
    resampled: Tensor
    window: Window
    peak: float
    mask: int


def read_short(file: RecordingFile, source: Source, windows: Windows, rate: int) -> ShortRecording | None:
    """Read a recording that fits one window at the separator's rate; None if it does not, or does not tell its
    length."""
    if source.frames is None or windows.count(round(source.frames * rate / source.rate)) > 1:
        return None
    samples = torch.cat([torch.zeros(source.channels, 0), *source.blocks()], dim=1)
    recording = Waveform(samples, source.rate)
    resampled = resample(samples, source.rate, rate)
    cuts = list(cut([resampled], source.channels, windows, rate))
    if len(cuts) > 1 or not recording.frames:
        return None
    return ShortRecording(file, recording, resampled, cuts[0], samples.abs().max().item(), source.mask)


def separate_short(
    recordings: Sequence[ShortRecording],
    masking: Masking | None,
    windows: Windows,
    rate: int,
    track: Callable[[], PresenceTracker],
    gated: bool,
) -> list[tuple[Tensor, Sequence[Decision]]]:
    """Recordings whose windows have one shape -> the stems (Q, C, n) of each at its own rate and length, and the
    decisions about them."""
    if masking is None:
        raise ValueError("no queries: there is nothing to separate")
    estimates = masking(torch.stack([one.window.samples for one in recordings]))
    found, trackers = [], []
    for one in recordings:
        tracker = track()
        tracker.add_mixture(one.resampled)
        stems = torch.zeros(masking.queries, *one.recording.samples.shape)
        for query in range(masking.queries):
            kept = next(estimates)[:, windows.context : windows.context + one.window.core]
            tracker.add_estimate(query, kept)
            stem = resample(kept, rate, one.recording.rate)[:, : one.recording.frames]
            stems[query, :, : stem.shape[1]] = stem
        found.append(stems)
        trackers.append(tracker)
    return list(zip(found, decide_together(trackers, gated), strict=True))
