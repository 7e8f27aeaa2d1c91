"""One separation, step by step: fetch, decode, make queries, separate, store. Publishing is the caller's."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import soundfile
import torch

from app.audio.records import store_key
from app.errors import AudioTooLong, EarmarkError, SpanOutside, StoreUnavailable
from app.lifecycle import Job, JobError, TargetState
from app.separations.records import (
    MixtureRecord,
    ModelRecord,
    SeparationRequest,
    SeparationResult,
    Span,
    StemRecord,
    TargetRecord,
)
from models.audio import Waveform, mono
from models.engine import SeparatedFiles
from models.errors import Cancelled, ModelsError
from models.media import Limits, MediaInfo
from models.query import Query
from worker.decode import decode
from worker.workbench import Attention, Workbench

logger = logging.getLogger("earmark.worker")

STORE_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # s between tries while the store does not answer
# Where the stages lie on the job's way from 0 to 1.
DECODED, ASKED, SEPARATED = 0.05, 0.1, 0.95
# Which figure of the result a stage's seconds belong to.
METRICS = {
    "decoding": "decoding",
    "detecting": "separating",
    "separating": "separating",
    "encoding": "encoding",
    "storing": "encoding",
}

T = TypeVar("T")


class NoTargetLeft(Exception):
    """Every target has failed; `error` is the first one's."""

    def __init__(self, targets: list[TargetState], error: JobError) -> None:
        super().__init__(error.detail)
        self.targets = targets
        self.error = error


@dataclass(frozen=True)
class Outcome:
    """What is to be published."""

    targets: list[TargetState]
    result: SeparationResult


def separated(bench: Workbench, job: Job, execution: str, folder: Path, attention: Attention) -> Outcome:
    """Do the whole separation in `folder` and store its stems under the execution's prefix.

    Raises NoTargetLeft; models.errors.Cancelled; ModelsError and EarmarkError for what is wrong with the job as a
    whole; StoreUnavailable when the store stays away; OSError where this machine is at fault.
    """
    return _Separation(bench, job, execution, folder, attention).run()


class _Separation:
    def __init__(self, bench: Workbench, job: Job, execution: str, folder: Path, attention: Attention) -> None:
        self._bench = bench
        self._job = job
        self._execution = execution
        self._folder = folder
        self._attention = attention
        self._clock = _Clock()
        self._request = SeparationRequest.model_validate(job.request)
        self._states = {target.name: target.model_copy() for target in job.targets}

    def run(self) -> Outcome:
        self._enter(0.0, "decoding")
        mixture = self._folder / "mixture.wav"
        info = self._decoded(self._request.mixture.audio_id, mixture, self._bench.settings.recording_seconds)
        self._enter(DECODED, "detecting")
        queries = self._queries(mixture, info)
        self._enter(ASKED, "separating")
        files = self._separate(mixture, queries)
        self._enter(SEPARATED, "storing")
        stems = self._store(files)
        for name in queries:
            self._update(name, status="succeeded", presence=files.presence.get(name))
        return Outcome(targets=list(self._states.values()), result=self._result(files, stems))

    # Fetch and decode

    def _decoded(self, audio_id: str, target: Path, seconds: float) -> MediaInfo:
        """An upload as a WAV of floats at its own rate and channels, decoded where it can do no harm."""
        fetched = target.with_suffix(".upload")
        self._patiently(lambda: self._bench.storage.download(store_key(audio_id), fetched))
        try:
            return decode(fetched, target, self._limits(seconds), cancelled=self._attention.cancelled)
        finally:
            fetched.unlink(missing_ok=True)

    def _limits(self, seconds: float) -> Limits:
        settings = self._bench.settings
        return Limits(
            seconds=seconds,
            channels=settings.channels,
            lowest_rate=settings.lowest_rate,
            highest_rate=settings.highest_rate,
            samples=settings.recording_samples,
        )

    # Queries

    def _queries(self, mixture: Path, info: MediaInfo) -> dict[str, Query]:
        """Each target's query; a target that cannot have one fails alone. Raises NoTargetLeft."""
        queries: dict[str, Query] = {}
        for target in self._request.targets:
            if self._attention.cancelled():
                raise Cancelled("stopped while queries were made")
            try:
                query = self._query(target, mixture, info)
            except (Cancelled, StoreUnavailable):
                raise
            except (ModelsError, EarmarkError) as error:
                self._update(target.name, status="failed", error=JobError(code=error.code, detail=str(error)))
                self._bench.jobs.target(self._job.id, self._execution, self._states[target.name])
            else:
                queries[target.name] = query
                self._update(target.name, status="running", coherence=query.coherence, warnings=query.warnings)
        if not queries:
            states = list(self._states.values())
            raise NoTargetLeft(states, next(state.error for state in states if state.error is not None))
        return queries

    def _query(self, target: TargetRecord, mixture: Path, info: MediaInfo) -> Query:
        engine = self._bench.engine
        if target.label is not None:
            return engine.label(target.label)
        if target.spans:
            return engine.embed([self._span(mixture, info, span) for span in target.spans])
        return engine.embed([self._example(example.audio_id) for example in target.examples])

    def _example(self, audio_id: str) -> Waveform:
        path = self._folder / "example.wav"
        self._decoded(audio_id, path, self._bench.settings.example_seconds)
        try:
            return _read(path)
        finally:
            path.unlink()

    def _span(self, mixture: Path, info: MediaInfo, span: Span) -> Waveform:
        longest = self._bench.settings.example_seconds
        if info.duration is None or not 0 <= span.start < span.end <= info.duration + 0.01:
            raise SpanOutside(f"{span.start:g} to {span.end:g} s lies outside the mixture of {info.duration or 0:g} s.")
        if span.end - span.start > longest:
            raise AudioTooLong(f"A span may last {longest:g} s.")
        return _read(mixture, round(span.start * info.rate), round(span.end * info.rate))

    # Separate and store

    def _separate(self, mixture: Path, queries: dict[str, Query]) -> SeparatedFiles:
        output = self._request.output

        def progress(ratio: float, stage: str) -> None:
            self._enter(ASKED + (SEPARATED - ASKED) * ratio, stage)

        return self._bench.engine.separate_file(
            mixture,
            queries,
            self._folder / "stems",
            format=output.format,
            bit_depth=output.bit_depth,
            residual=output.residual,
            joint=output.joint,
            gate=output.gate,
            progress=progress,
            cancelled=self._attention.cancelled,
            limits=self._limits(self._bench.settings.recording_seconds),
        )

    def _store(self, files: SeparatedFiles) -> list[StemRecord]:
        prefix = self._bench.jobs.output_prefix(self._job, self._execution)
        stems = []
        for index, stem in enumerate(files.stems):
            if self._attention.cancelled():
                raise Cancelled("stopped while stems were stored")
            key, path = f"{prefix}/{index}{stem.path.suffix}", stem.path
            stored = self._patiently(lambda key=key, path=path: self._bench.storage.put_file(key, path))
            path.unlink()
            stems.append(
                StemRecord(
                    name=stem.name,
                    key=key,
                    content_type=stem.content_type,
                    bytes=stored.bytes,
                    sha256=stored.sha256,
                    peak=stem.peak,
                    loudness=stem.loudness,
                )
            )
        return stems

    def _result(self, files: SeparatedFiles, stems: list[StemRecord]) -> SeparationResult:
        name, _, version = self._bench.engine.model_id.partition("@")
        mixture = self._request.mixture.model_copy(
            update={"duration": files.duration, "sample_rate": files.rate, "channels": files.channels}
        )
        return SeparationResult(
            mixture=MixtureRecord.model_validate(mixture),
            stems=stems,
            gain=files.gain,
            model=ModelRecord(name=name, version=version),
            metrics=self._clock.metrics(files.duration),
        )

    # Manners

    def _enter(self, ratio: float, stage: str) -> None:
        self._clock.enter(stage)
        self._attention.progress(ratio, stage)

    def _update(self, name: str, **changes: object) -> None:
        self._states[name] = self._states[name].model_copy(update=changes)

    def _patiently(self, action: Callable[[], T]) -> T:
        """The store may be away for a moment; to try again is cheaper here than to begin the job again."""
        for wait in STORE_WAITS:
            try:
                return action()
            except StoreUnavailable as error:
                logger.warning("%s: %s; trying again in %.0f s", self._job.id, error.detail, wait)
            end = time.monotonic() + wait
            while time.monotonic() < end:
                if self._attention.cancelled():
                    raise Cancelled("stopped while the store was away")
                time.sleep(0.1)
        return action()


class _Clock:
    """Seconds a stage, by when the next one was entered."""

    def __init__(self) -> None:
        self._began = self._entered = time.monotonic()
        self._stage = "decoding"
        self._seconds = dict.fromkeys(METRICS, 0.0)

    def enter(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[self._stage] += now - self._entered
        self._stage, self._entered = stage, now

    def metrics(self, duration: float) -> dict[str, float]:
        """Seconds decoding, separating and encoding, and all of it as a share of the recording's `duration`."""
        self.enter(self._stage)
        figures = dict.fromkeys(METRICS.values(), 0.0)
        for stage, seconds in self._seconds.items():
            figures[METRICS[stage]] += seconds
        figures["real_time_factor"] = (time.monotonic() - self._began) / max(duration, 1e-3)
        return {name: round(figure, 4) for name, figure in figures.items()}


def _read(path: Path, start: int = 0, stop: int | None = None) -> Waveform:
    """Samples [start, stop) of a WAV, as one channel: queries hear no more."""
    samples, rate = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    return Waveform(mono(torch.from_numpy(samples.T)).unsqueeze(0).contiguous(), rate)
