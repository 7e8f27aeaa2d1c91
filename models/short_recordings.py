"""Separation of many recordings that fit one window each, in batches: networks take half as long for a window of a
batch as for a single short one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from models.audio import Waveform, resample
from models.detector_runner import Decision, PresenceTracker, decide_together
from models.errors import ModelsError
from models.separation import Masking, Source, Window, Windows, cut

Made = TypeVar("Made")
_Failure = ModelsError | OSError | ValueError


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


def run_in_batches(
    files: Iterable[RecordingFile],
    read: Callable[[RecordingFile], ShortRecording | None],
    separate: Callable[[Sequence[ShortRecording]], list[tuple[Tensor, Sequence[Decision]]]],
    write: Callable[[ShortRecording, Tensor, Sequence[Decision]], Made],
    separate_long: Callable[[RecordingFile], Made],
    batch: Callable[[int], int],
) -> Iterator[tuple[RecordingFile, Made | _Failure]]:
    """Yield each file with what is made of it, or its error, as soon as it is done.

    Those that `read` returns wait until there are `batch(samples of a window)` of one shape; `separate_long` is called
    for the others at once. A batch is written by other threads while the next one is computed.
    """
    waiting: dict[torch.Size, list[ShortRecording]] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        writing: list[tuple[RecordingFile, Future[Made]]] = []

        def separate_batch(shape: torch.Size) -> Iterator[tuple[RecordingFile, Made | _Failure]]:
            nonlocal writing
            group = waiting.pop(shape)
            separated = separate(group)
            done, writing = (
                writing,
                [(one.file, threads.submit(write, one, *result)) for one, result in zip(group, separated, strict=True)],
            )
            yield from _results(done)

        for file in files:
            try:
                short = read(file)
                if short is None:
                    yield file, separate_long(file)
                    continue
            except (ModelsError, OSError, ValueError) as error:
                yield file, error
                continue
            shape = short.window.samples.shape
            waiting.setdefault(shape, []).append(short)
            if len(waiting[shape]) >= batch(shape[1]):
                yield from separate_batch(shape)
        for shape in list(waiting):
            yield from separate_batch(shape)
        yield from _results(writing)


def _results(
    writing: Sequence[tuple[RecordingFile, Future[Made]]],
) -> Iterator[tuple[RecordingFile, Made | _Failure]]:
    for file, future in writing:
        try:
            yield file, future.result()
        except (ModelsError, OSError, ValueError) as error:
            yield file, error
