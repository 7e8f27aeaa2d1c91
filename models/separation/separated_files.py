"""What a separation to files returns, how it reports its progress, and the folder that it writes to."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from models.separation.detector_runner import Decision
from models.separation.long_recordings import Source
from models.separation.stems import StemFile

Progress = Callable[[float, str], None]

SILENT_MIXTURE = "The mixture is silent: there is nothing to separate, and all stems are silent too."

# The approximate share of a separation's time that each stage takes, as start and end.
_STAGES = {"detecting": (0.0, 0.05), "separating": (0.05, 0.9), "encoding": (0.9, 1.0)}


@dataclass(frozen=True)
class Separated:
    """The decisions of a separation, the mixture's length in samples and highest amplitude, and what it was computed
    with (`SeparatedFiles.computation`)."""

    decisions: Sequence[Decision]
    frames: int
    peak: float
    computation: dict[str, int]


@dataclass(frozen=True)
class SeparatedFiles:
    """Stems as files, the residual last and named "residual". gain: the factor on mixture and stems that avoids
    clipping. frames, duration (s): of the mixture and of every stem. computation: what the samples depend on beside the
    recording and the queries, to the last bit: threads, batch (masks at once), bits (of the masks' arithmetic) and
    speeds (whose masks are averaged). warnings: sentences about the mixture."""

    stems: list[StemFile]
    presence: dict[str, float]
    gain: float
    rate: int
    channels: int
    frames: int
    duration: float
    computation: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, source: Source, done: Separated, names: Sequence[str], written: tuple[list[StemFile], float]
    ) -> "SeparatedFiles":
        files, gain = written
        presence = {name: decision.presence for name, decision in zip(names, done.decisions, strict=True)}
        seconds = done.frames / source.rate
        warnings = [] if done.peak else [SILENT_MIXTURE]
        return cls(
            files, presence, gain, source.rate, source.channels, done.frames, seconds, done.computation, warnings
        )


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make a folder with a temporary one inside; a failure leaves neither."""
    existed = path.is_dir()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".spool-", dir=path, ignore_cleanup_errors=True) as waiting:
            yield Path(waiting)
    except BaseException:
        if not existed:
            with suppress(OSError):  # what is left in it must not hide the error
                path.rmdir()
        raise


def reporter(progress: Progress | None) -> Progress:
    """Return a function that reports (share of a stage, stage) as a ratio of the whole, which never falls."""
    reached = 0.0

    def report(share: float, stage: str) -> None:
        nonlocal reached
        start, end = _STAGES[stage]
        reached = max(reached, start + (end - start) * min(max(share, 0.0), 1.0))
        if progress is not None:
            progress(reached, stage)

    return report
