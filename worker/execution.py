"""One execution of a job of any kind: what it fetches, decodes and stores, and how it tells how far it is."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import soundfile
import torch
from pydantic import BaseModel

from app.errors import StoreUnavailable
from app.jobs.fair_queue import UNKNOWN_SECONDS
from app.jobs.lifecycle import Job, TargetState
from app.records.audio import store_key
from app.records.shared import ModelRecord
from app.storage import StoredObject
from models.audio import Waveform, mono
from models.errors import Cancelled
from models.media import Limits, MediaInfo
from models.query import Query
from worker.context import ExecutionControl, WorkerContext
from worker.decode import decode

logger = logging.getLogger("earmark.worker")

HEADER_ERROR = 0.5  # s that a header may be wrong about without consequence
STORE_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # s between tries while the store does not answer

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What is to be published."""

    result: BaseModel
    targets: list[TargetState] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class JobExecution:
    """A job in the hands of this worker, with a private folder."""

    def __init__(self, context: WorkerContext, job: Job, execution: str, folder: Path) -> None:
        self.context = context
        self.job = job
        self.id = execution
        self.folder = folder
        self.attention = ExecutionControl(context, job.id, execution)
        self.clock = StageTimer()

    @property
    def model(self) -> ModelRecord:
        """The model that this worker has loaded."""
        name, _, version = self.context.engine.model_id.partition("@")
        return ModelRecord(name=name, version=version)

    def enter(self, ratio: float, stage: str) -> None:
        """The job is so far, 0 to 1, and does this now."""
        self.clock.enter(stage)
        self.attention.progress(ratio, stage)

    def check(self) -> None:
        """Raises Cancelled where the job is not wanted any more."""
        if self.attention.is_cancelled():
            raise Cancelled("stopped between two steps")

    def decode_recording(self, audio_id: str, target: Path) -> MediaInfo:
        """An upload as a WAV of floats at its own rate and channels, decoded where it can do no harm."""
        info = self._fetch_and_decode(audio_id, target, self.context.settings.recording_seconds)
        self._correct_charge(info.duration or 0.0)
        return info

    def embed(self, audio_ids: list[str]) -> Query:
        """One query from uploads that sound like it."""
        return self.context.engine.embed([self._example(audio_id) for audio_id in audio_ids])

    def store(self, name: str, path: Path) -> StoredObject:
        """Store a file under this execution's prefix, and remove it here."""
        self.check()
        stored = self._retry_store(lambda: self.context.storage.put_file(self.key(name), path))
        path.unlink()
        return stored

    def key(self, name: str) -> str:
        """Where `store` puts what has this name."""
        return f"{self.context.jobs.output_prefix(self.job, self.id)}/{name}"

    def limits(self, seconds: float) -> Limits:
        """What a recording of at most `seconds` may be."""
        settings = self.context.settings
        return Limits(
            seconds=seconds,
            channels=settings.channels,
            lowest_rate=settings.lowest_rate,
            highest_rate=settings.highest_rate,
            samples=settings.recording_samples,
        )

    def _correct_charge(self, seconds: float) -> None:
        """Headers may lie, and some tell nothing: a caller's day is charged for what a recording turned out to be."""
        told = self.job.audio_seconds
        difference = seconds - (UNKNOWN_SECONDS if told is None else told)
        # The record first: should this execution die in between, the next one does not charge twice.
        if abs(difference) > HEADER_ERROR and self.context.jobs.record_duration(self.job.id, self.id, seconds):
            self.context.quotas.adjust(self.job.owner, difference, self.job.created_at)

    def _example(self, audio_id: str) -> Waveform:
        self.check()
        path = self.folder / "example.wav"
        self._fetch_and_decode(audio_id, path, self.context.settings.example_seconds)
        try:
            return read_mono(path)
        finally:
            path.unlink()

    def _fetch_and_decode(self, audio_id: str, target: Path, seconds: float) -> MediaInfo:
        fetched = target.with_suffix(".upload")
        self._retry_store(lambda: self.context.storage.download(store_key(audio_id), fetched))
        try:
            return decode(fetched, target, self.limits(seconds), cancelled=self.attention.is_cancelled)
        finally:
            fetched.unlink(missing_ok=True)

    def _retry_store(self, action: Callable[[], T]) -> T:
        """The store may be away for a moment; to try again is cheaper here than to begin the job again."""
        for wait in STORE_WAITS:
            try:
                return action()
            except StoreUnavailable as error:
                logger.warning("%s: %s; trying again in %.0f s", self.job.id, error.detail, wait)
            self.attention.wait(wait)
        return action()


class StageTimer:
    """Seconds a stage, by when the next one was entered."""

    def __init__(self) -> None:
        self._began = self._entered = time.monotonic()
        self._stage = ""
        self._seconds: dict[str, float] = {}

    def enter(self, stage: str) -> None:
        """The stage before ends, this one begins."""
        now = time.monotonic()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._entered
        self._stage, self._entered = stage, now

    def metrics(self, figures: dict[str, str], duration: float) -> dict[str, float]:
        """Seconds by `figures` (stage -> the figure that it belongs to), and the real-time factor of everything for a
        recording's `duration`."""
        self.enter(self._stage)
        told = dict.fromkeys(figures.values(), 0.0)
        for stage, seconds in self._seconds.items():
            if stage:
                told[figures[stage]] += seconds
        told["real_time_factor"] = (time.monotonic() - self._began) / max(duration, 1e-3)
        return {name: round(figure, 4) for name, figure in told.items()}


def read_mono(path: Path, start: int = 0, stop: int | None = None) -> Waveform:
    """Samples [start, stop) of a WAV, as one channel: queries hear no more."""
    samples, rate = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    return Waveform(mono(torch.from_numpy(samples.T)).unsqueeze(0).contiguous(), rate)
