"""The work of a separation: decode, make queries, separate, store the stems."""

from app.errors import EarmarkError, StoreUnavailable
from app.jobs.lifecycle import JobError
from app.records.separations import AutoRecord, SeparationRequest, SeparationResult, StemRecord
from app.records.sizes import SeparationSize
from models.engine import SeparatedFiles, SeparationOptions
from models.errors import Cancelled, ModelsError
from models.queries.query import Query
from worker.execution import JobExecution, NoTargetLeft, Outcome, Recording
from worker.target_queries import auto_targets, target_query

# The job's progress, 0 to 1, at which a stage begins.
DETECTING, SEPARATING, STORING = 0.05, 0.1, 0.95
# The metric of the result that a stage's seconds count towards.
STAGE_METRICS = {
    "decoding": "decoding",
    "detecting": "separating",
    "separating": "separating",
    "encoding": "encoding",
    "storing": "encoding",
}


def separate(execution: JobExecution) -> Outcome:
    """Separate the mixture into stems and store them. Raises NoTargetLeft, RequestTooLarge."""
    return _Separation(execution).run()


class _Separation:
    """The states of the targets and the warnings of one separation, while it runs."""

    def __init__(self, execution: JobExecution) -> None:
        self._execution = execution
        self._context = execution.context
        self._request = SeparationRequest.model_validate(execution.job.request)
        self._states = {target.name: target.model_copy() for target in execution.job.targets}
        self._warnings: list[str] = []

    def run(self) -> Outcome:
        auto = self._request.auto
        targets = len(self._request.targets) if auto is None else auto.max_targets
        mixture = self._execution.decode_recording(self._request.mixture, targets)
        self._require_room(mixture, targets)
        self._warnings += mixture.warnings
        self._execution.enter(DETECTING, "detecting")
        queries = self._queries(mixture)
        files = self._separate(mixture, queries)
        self._warnings += files.warnings
        self._execution.enter(STORING, "storing")
        stems = self._store(files)
        for name in queries:
            self._set_state(name, status="succeeded", presence=files.presence.get(name))
        result = SeparationResult(
            mixture=mixture.record(files.duration),
            stems=stems,
            gain=files.gain,
            quality=self._request.output.quality,
            model=self._execution.model,
            metrics=self._execution.timer.metrics(STAGE_METRICS, files.duration) | files.computation,
        )
        return Outcome(result, list(self._states.values()), self._warnings)

    def _require_room(self, mixture: Recording, targets: int) -> None:
        """Raise RequestTooLarge if the decoded recording needs more disk space than its header let expect."""
        info = mixture.info
        size = SeparationSize(info.rate, info.channels, mixture.duration, targets, self._request.output)
        size.require_room(self._context.settings)

    # Queries

    def _queries(self, mixture: Recording) -> dict[str, Query]:
        """Return the queries by target name. Raises NoTargetLeft."""
        if self._request.auto is not None:
            return self._auto_queries(mixture, self._request.auto)
        return self._target_queries(mixture)

    def _auto_queries(self, mixture: Recording, auto: AutoRecord) -> dict[str, Query]:
        targets, warnings = auto_targets(self._execution, mixture, auto)
        self._warnings += warnings
        self._execution.correct_charge(mixture, len(targets))
        self._states = {state.name: state for state, _ in targets}
        for state, query in targets:
            self._set_running(state.name, query)
        return {state.name: query for state, query in targets}

    def _target_queries(self, mixture: Recording) -> dict[str, Query]:
        """A target whose query cannot be made fails alone. Raises NoTargetLeft."""
        queries: dict[str, Query] = {}
        for target in self._request.targets:
            self._execution.control.check()
            try:
                query = target_query(self._execution, mixture, target)
            except (Cancelled, StoreUnavailable):
                raise
            except (ModelsError, EarmarkError) as error:
                self._set_state(target.name, status="failed", error=JobError(code=error.code, detail=str(error)))
                job = self._execution.job
                self._context.jobs.update_target(job.id, self._execution.id, self._states[target.name])
            else:
                queries[target.name] = query
                self._set_running(target.name, query)
        if not queries:
            states = list(self._states.values())
            error = next(state.error for state in states if state.error is not None)
            raise NoTargetLeft(states, error, self._warnings)
        return queries

    def _set_running(self, name: str, query: Query) -> None:
        self._set_state(name, status="running", coherence=query.coherence, warnings=query.warnings)

    def _set_state(self, name: str, **changes: object) -> None:
        self._states[name] = self._states[name].model_copy(update=changes)

    # Separate and store

    def _separate(self, mixture: Recording, queries: dict[str, Query]) -> SeparatedFiles:
        output, info = self._request.output, mixture.info
        if not queries and not output.residual:  # no class reached the threshold, and no residual is requested
            return SeparatedFiles([], {}, 1.0, info.rate, info.channels, info.frames or 0, mixture.duration)
        progress = self._execution.progress_between(SEPARATING, STORING)
        return self._context.engine.separate_file(
            mixture.path,
            queries,
            self._execution.folder / "stems",
            SeparationOptions(**output.model_dump()),
            progress=progress,
            cancelled=self._execution.control.is_cancelled,
            limits=self._execution.recording_limits,
        )

    def _store(self, files: SeparatedFiles) -> list[StemRecord]:
        stems = []
        for index, stem in enumerate(files.stems):
            key, stored = self._execution.store(stem.path, f"{index}{stem.path.suffix}")
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
