"""One separation, step by step: fetch, decode, make queries, separate, store. Publishing is the caller's."""

from app.errors import EarmarkError, StoreUnavailable
from app.jobs.lifecycle import JobError, TargetState
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from models.engine import SeparatedFiles, SeparationOptions
from models.errors import Cancelled, ModelsError
from models.query import Query
from worker.execution import JobExecution, Outcome
from worker.target_queries import Mixture, auto_targets, target_query

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


class NoTargetLeft(Exception):
    """Every target has failed; `error` is the first one's."""

    def __init__(self, targets: list[TargetState], error: JobError) -> None:
        super().__init__(error.detail)
        self.targets = targets
        self.error = error


def separate(execution: JobExecution) -> Outcome:
    """Do the whole separation in the execution's folder and store its stems under its prefix.

    Raises NoTargetLeft; models.errors.Cancelled; ModelsError and EarmarkError for what is wrong with the job as a
    whole; StoreUnavailable when the store stays away; OSError where this machine is at fault.
    """
    return _Separation(execution).run()


class _Separation:
    def __init__(self, execution: JobExecution) -> None:
        self._execution = execution
        self._context = execution.context
        self._request = SeparationRequest.model_validate(execution.job.request)
        self._states = {target.name: target.model_copy() for target in execution.job.targets}
        self._warnings: list[str] = []

    def run(self) -> Outcome:
        self._execution.enter(0.0, "decoding")
        path = self._execution.folder / "mixture.wav"
        info = self._execution.decode_recording(self._request.mixture.audio_id, path)
        mixture = Mixture(path, info, self._context.settings.example_seconds)
        self._execution.enter(DECODED, "detecting")
        queries = self._queries(mixture)
        self._execution.enter(ASKED, "separating")
        files = self._separate(mixture, queries)
        self._execution.enter(SEPARATED, "storing")
        stems = self._store(files)
        for name in queries:
            self._update(name, status="succeeded", presence=files.presence.get(name))
        return Outcome(self._result(files, stems), list(self._states.values()), self._warnings)

    # Queries

    def _queries(self, mixture: Mixture) -> dict[str, Query]:
        """The targets' queries. Raises NoTargetLeft where there were targets."""
        if self._request.auto is None:
            return self._asked(mixture)
        found = list(auto_targets(self._execution, mixture, self._request.auto))
        if not found:
            threshold = self._request.auto.threshold
            self._warnings.append(f"Nothing is heard with a probability of {threshold:g}: there are no targets.")
        self._states = {state.name: state for state, _ in found}
        for state, query in found:
            self._running(state.name, query)
        return {state.name: query for state, query in found}

    def _asked(self, mixture: Mixture) -> dict[str, Query]:
        """Each target's query; a target that cannot have one fails alone. Raises NoTargetLeft."""
        queries: dict[str, Query] = {}
        for target in self._request.targets:
            self._execution.check()
            try:
                query = target_query(self._execution, mixture, target)
            except (Cancelled, StoreUnavailable):
                raise
            except (ModelsError, EarmarkError) as error:
                self._update(target.name, status="failed", error=JobError(code=error.code, detail=str(error)))
                job = self._execution.job
                self._context.jobs.update_target(job.id, self._execution.id, self._states[target.name])
            else:
                queries[target.name] = query
                self._running(target.name, query)
        if not queries:
            states = list(self._states.values())
            raise NoTargetLeft(states, next(state.error for state in states if state.error is not None))
        return queries

    def _running(self, name: str, query: Query) -> None:
        self._update(name, status="running", coherence=query.coherence, warnings=query.warnings)

    def _update(self, name: str, **changes: object) -> None:
        self._states[name] = self._states[name].model_copy(update=changes)

    # Separate and store

    def _separate(self, mixture: Mixture, queries: dict[str, Query]) -> SeparatedFiles:
        output, info = self._request.output, mixture.info
        if not queries and not output.residual:  # nothing was heard, and what is left is not wanted
            duration = info.duration or 0.0
            return SeparatedFiles([], {}, 1.0, info.rate, info.channels, info.frames or 0, duration)

        def progress(ratio: float, stage: str) -> None:
            self._execution.enter(ASKED + (SEPARATED - ASKED) * ratio, stage)

        return self._context.engine.separate_file(
            mixture.path,
            queries,
            self._execution.folder / "stems",
            SeparationOptions(
                format=output.format,
                bit_depth=output.bit_depth,
                residual=output.residual,
                joint=output.joint,
                gate=output.gate,
            ),
            progress=progress,
            cancelled=self._execution.attention.is_cancelled,
            limits=self._execution.limits(self._context.settings.recording_seconds),
        )

    def _store(self, files: SeparatedFiles) -> list[StemRecord]:
        stems = []
        for index, stem in enumerate(files.stems):
            name = f"{index}{stem.path.suffix}"
            stored = self._execution.store(name, stem.path)
            stems.append(
                StemRecord(
                    name=stem.name,
                    key=self._execution.key(name),
                    content_type=stem.content_type,
                    bytes=stored.bytes,
                    sha256=stored.sha256,
                    peak=stem.peak,
                    loudness=stem.loudness,
                )
            )
        return stems

    def _result(self, files: SeparatedFiles, stems: list[StemRecord]) -> SeparationResult:
        mixture = self._request.mixture.model_copy(
            update={"duration": files.duration, "sample_rate": files.rate, "channels": files.channels}
        )
        return SeparationResult(
            mixture=mixture,
            stems=stems,
            gain=files.gain,
            model=self._execution.model,
            metrics=self._execution.clock.metrics(METRICS, files.duration),
        )
