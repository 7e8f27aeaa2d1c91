"""One execution of a job of any kind: it fetches and decodes uploads, stores outputs and reports progress."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import soundfile
import torch
from pydantic import BaseModel

from app.errors import StoreUnavailable
from app.jobs.fair_queue import UNKNOWN_SECONDS
from app.jobs.lifecycle import Job, JobError, StoredFields, TargetState
from app.records.audio import store_key
from app.records.shared import ExampleRecord, ModelRecord, RecordingRecord
from app.records.sizes import charged_seconds
from app.storage import StoredObject
from models.audio import Waveform, mono
from models.errors import MediaError, SilentQuery
from models.media import Limits, MediaInfo
from models.queries.query import Query
from worker.context import ExecutionControl, WorkerContext
from worker.decode import decode
from worker.stage_timer import StageTimer

logger = logging.getLogger("earmark.worker")

HEADER_TOLERANCE = 0.5  # s by which a header may be wrong without a correction of the quota
STORE_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)  # between tries while the store does not answer

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """The result of a job's work, ready to be published; `excerpt_bytes` as in `JobRepository.publish`."""

    result: BaseModel
    targets: list[TargetState] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    excerpt_bytes: int = 0


class NoTargetLeft(Exception):
    """Every target of a job has failed; `error` is the first one's, `warnings` are the job's so far, such as what is
    missing from its recording."""

    def __init__(self, targets: list[TargetState], error: JobError, warnings: list[str]) -> None:
        super().__init__(error.detail)
        self.targets = targets
        self.error = error
        self.warnings = warnings


@dataclass(frozen=True)
class Recording:
    """A job's recording after decoding: `path` is a WAV of 32-bit floats at the upload's own rate and channels."""

    request: RecordingRecord
    path: Path
    info: MediaInfo

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.info.duration or 0.0

    @property
    def warnings(self) -> list[str]:
        """Sentences about what is missing from the decoded recording, or was changed in it."""
        return list(self.info.warnings)

    def record(self, duration: float) -> RecordingRecord:
        """Return the record for the job's result, with what decoding has shown instead of what headers say."""
        return self.request.model_copy(
            update={"duration": duration, "sample_rate": self.info.rate, "channels": self.info.channels}
        )


@dataclass(frozen=True)
class Examples:
    """Decoded examples of one sound, and sentences about what is missing from them."""

    waveforms: list[Waveform]
    warnings: list[str]


class JobExecution:
    """One execution of a job by this worker.

    folder: the scratch folder; it exists while the job's work runs.
    control: progress reporting and cancellation. timer: the stage timer.
    """

    folder: Path

    def __init__(self, context: WorkerContext, job: Job, execution_id: str) -> None:
        self.context = context
        self.job = job
        self.id = execution_id
        self.control = ExecutionControl(context, job.id, execution_id)
        self.timer = StageTimer()
        expected = UNKNOWN_SECONDS if job.audio_seconds is None else job.audio_seconds
        self._charged_seconds = expected if job.charged_seconds is None else job.charged_seconds

    @property
    def model(self) -> ModelRecord:
        """The model that this worker has loaded."""
        name, _, version = self.context.engine.model_id.partition("@")
        return ModelRecord(name=name, version=version)

    @property
    def recording_limits(self) -> Limits:
        """The limits of a job's recording."""
        return self._limits(self.context.settings.recording_seconds)

    def load_request(self) -> None:
        """Complete the job with what its record refers to. Raises `StoreUnavailable`."""
        self.job = self.retry_store(lambda: self.context.large_fields.load(self.job))

    def store_outcome(self, outcome: Outcome, result: dict[str, Any]) -> StoredFields | None:
        """Store an outcome that is too large for the job's record; see `LargeFields`. Raises `StoreUnavailable`."""
        arguments = (self.job, self.id, outcome.targets, result, outcome.warnings)
        return self.retry_store(lambda: self.context.large_fields.store_outcome(*arguments))

    def enter(self, ratio: float, stage: str) -> None:
        """Begin or continue a stage, with the job's progress `ratio` from 0 to 1."""
        self.timer.enter(stage)
        self.control.report_progress(ratio, stage)

    def progress_between(self, start: float, end: float) -> Callable[[float, str], None]:
        """Return a progress callback for the engine, whose 0 to 1 is the job's `start` to `end`."""
        return lambda ratio, stage: self.enter(start + (end - start) * ratio, stage)

    def decode_recording(self, recording: RecordingRecord, targets: int = 1) -> Recording:
        """Fetch and decode the job's recording, and correct the quota's charge for it and so many targets.

        This is the stage "decoding". Raises as `worker.decode.decode` does.
        """
        self.enter(0.0, "decoding")
        path = self.folder / "recording.wav"
        info = self._fetch_and_decode(recording, path, self.recording_limits)
        decoded = Recording(recording, path, info)
        self.correct_charge(decoded, targets)
        return decoded

    def correct_charge(self, recording: Recording, targets: int) -> None:
        """Charge the owner's daily quota for what the job turns out to be: headers may be wrong, or have no duration,
        and there may be fewer targets than could be detected."""
        charged = charged_seconds(recording.duration, recording.info.channels, targets, self.job.effort)
        difference = charged - self._charged_seconds
        # The record first: if this execution dies in between, the next one does not charge twice.
        if abs(difference) > HEADER_TOLERANCE and self.context.jobs.record_duration(
            self.job.id, self.id, recording.duration, charged
        ):
            self.context.quotas.adjust(self.job.owner, difference, self.job.created_at)
            self._charged_seconds = charged

    def embed_examples(self, examples: Sequence[ExampleRecord], role: str = "Example") -> Query:
        """Return one query from uploads that hold examples of a sound; its warnings tell what is missing from them.

        Raises as `read_examples`, and SilentQuery and ExampleTooShort, whose messages end with these warnings.
        """
        return self.embed(self.read_examples(examples, role))

    def read_examples(self, examples: Sequence[ExampleRecord], role: str = "Example") -> Examples:
        """Fetch and decode uploads that hold examples of a sound. Raises MediaError, which names the example."""
        found = Examples([], [])
        for number, example in enumerate(examples, 1):
            try:
                waveform, info = self._example(example)
            except MediaError as error:
                raise type(error)(f"{role} {number}: {error.detail}") from error
            found.waveforms.append(waveform)
            found.warnings.extend(f"{role} {number}: {sentence}" for sentence in info.warnings)
        return found

    def embed(self, examples: Examples) -> Query:
        """Return the query of decoded examples; raises as `embed_examples` does."""
        try:
            query = self.context.engine.embed(examples.waveforms)
        except SilentQuery as error:  # or its subclass, for an example that is too short
            raise type(error)(" ".join([str(error), *examples.warnings])) from error
        return replace(query, warnings=[*examples.warnings, *query.warnings])

    def retry_store(self, action: Callable[[], T]) -> T:
        """Retry while the store is unavailable: that is cheaper than another execution of the job."""
        for seconds in STORE_RETRY_SECONDS:
            try:
                return action()
            except StoreUnavailable as error:
                logger.warning("%s: %s; next try in %.0f s", self.job.id, error.detail, seconds)
            self.control.wait(seconds)
        return action()

    def store(self, path: Path, name: str | None = None) -> tuple[str, StoredObject]:
        """Move a file into the store under this execution's prefix, as `name` or its own; return its key and digest."""
        self.control.check()
        key = f"{self.context.jobs.output_prefix(self.job, self.id)}/{name or path.name}"
        stored = self.retry_store(lambda: self.context.storage.put_file(key, path))
        path.unlink()
        return key, stored

    def _limits(self, seconds: float) -> Limits:
        settings = self.context.settings
        return Limits(
            seconds=seconds,
            channels=settings.channels,
            lowest_rate=settings.lowest_rate,
            highest_rate=settings.highest_rate,
            samples=min(settings.recording_samples, settings.scratch_bytes // 4),
        )

    def _example(self, example: ExampleRecord) -> tuple[Waveform, MediaInfo]:
        self.control.check()
        path = self.folder / "example.wav"
        info = self._fetch_and_decode(example, path, self._limits(self.context.settings.example_seconds))
        try:
            return read_mono(path), info
        finally:
            path.unlink()

    def _fetch_and_decode(self, recording: RecordingRecord | ExampleRecord, target: Path, limits: Limits) -> MediaInfo:
        upload = target.with_suffix(".upload")
        self.retry_store(lambda: self.context.storage.download(store_key(recording.audio_id), upload))
        try:
            return decode(upload, target, limits, track=recording.track, cancelled=self.control.is_cancelled)
        finally:
            upload.unlink(missing_ok=True)


def read_mono(path: Path, start: int = 0, stop: int | None = None) -> Waveform:
    """Return samples [start, stop) of a WAV as one channel, which is what queries are made of."""
    samples, rate = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    return Waveform(mono(torch.from_numpy(samples.T)).unsqueeze(0).contiguous(), rate)
