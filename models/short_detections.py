"""Detection in many recordings, of which those that fit one window share batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models import detection
from models.audio import mono
from models.compute.batches import Failure, run_in_batches
from models.detection import Detection
from models.media import Limits
from models.networks import Detector
from models.separation.long_recordings import Source, at_rate
from models.separation.sources import in_file

# Of windows in a batch, at least one: of more, a network's layers leave the processor's cache.
_AT_ONCE_SECONDS = 30.0


@dataclass(frozen=True)
class ShortMono:
    """A recording that fits one window: `window` (T,), its sound and silence, and `samples` of sound, at the detector's
    rate."""

    window: Tensor
    samples: int


def run(
    paths: Iterable[Path],
    detector: Detector,
    infer: Callable[[Tensor], Tensor],
    limits: Limits | None,
    finish: Callable[[ShortMono, Tensor], Detection],
    run_long: Callable[[Path], Detection],
) -> Iterator[tuple[Path, Detection | Failure]]:
    """Yield each file with its detection, or its error, as soon as it is done.

    infer: windows (B, T) -> framewise (B, rows, C). finish(recording, its curve (F, C)). run_long: detects what does
    not fit one window.
    """

    def read(path: Path) -> ShortMono | None:
        with in_file(path, limits) as source:
            return read_short(source, detector)

    return run_in_batches(
        paths,
        read,
        shape=lambda short: short.window.shape,
        room=lambda shape: max(1, int(_AT_ONCE_SECONDS * detector.rate / shape[0])),
        compute=lambda short: framewise(short, detector, infer),
        finish=finish,
        run_long=run_long,
    )


def read_short(source: Source, detector: Detector) -> ShortMono | None:
    """Read a recording that fits one window; None if it does not, or does not tell its length."""
    longest = detection.longest_window(detector)
    if source.frames is None or round(source.frames * detector.rate / source.rate) > longest:
        return None
    samples = torch.cat([mono(block) for block in at_rate(source, detector.rate)])
    if len(samples) > longest:
        return None
    return ShortMono(detection.last_window(samples, detector), len(samples))


def framewise(recordings: Sequence[ShortMono], detector: Detector, infer: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Recordings whose windows have one length -> the curve (F, C) of each."""
    curves = infer(torch.stack([one.window for one in recordings]))[:, :: detector.rows_held]
    counts = [detection.row_count(one.samples, detector) for one in recordings]
    return [curve[:count].clone() for curve, count in zip(curves, counts, strict=True)]
