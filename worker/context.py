"""The worker context that all tasks share, and the progress reports and cancellation of one execution."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.jobs.large_fields import LargeFields
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.settings import Settings
from app.storage import Storage
from models.errors import Cancelled
from worker.rq_worker import Signals
from worker.scratch import Scratch
from worker.shared_threads import SharedThreads

if TYPE_CHECKING:
    from models.engine import Engine

CANCELLATION_SECONDS = 0.25  # between two reads of the record for a request to cancel
PROGRESS_SECONDS = 0.25  # between two reports of progress: each is an event, which all who follow the job read


@dataclass(frozen=True)
class WorkerContext:
    """One worker's model, stores and signals; the same for every job.

    progress_seconds: between two reports of progress, and before the first one; a job that takes less has none.
    threads: those of this process, which another worker in it shares.
    """

    engine: "Engine"
    jobs: JobRepository
    quotas: Quotas
    storage: Storage
    scratch: Scratch
    signals: Signals
    settings: Settings
    progress_seconds: float = PROGRESS_SECONDS
    threads: SharedThreads = field(default_factory=SharedThreads)

    @property
    def large_fields(self) -> LargeFields:
        """The large fields of records, which are in the store."""
        return LargeFields(self.jobs.redis, self.storage, self.settings)


class ExecutionControl:
    """Progress reporting and cancellation of one execution.

    Redis gets a few commands a second, however often the methods are called.
    """

    def __init__(self, context: WorkerContext, job_id: str, execution_id: str) -> None:
        self._context = context
        self._job_id = job_id
        self._execution_id = execution_id
        self._is_unwanted = False
        self._next_cancellation_check = time.monotonic() + CANCELLATION_SECONDS  # the claim has just read the record
        self._next_progress_report = time.monotonic() + context.progress_seconds
        self._reached: tuple[float, str] | None = None  # not reported yet

    def is_cancelled(self) -> bool:
        """Whether to stop: the record is cancelled, RQ's stop command came, or the worker shuts down.

        Called between two windows, it also corrects the number of threads that this thread computes with.
        """
        self._context.threads.take_share()
        if self._context.signals.stop.is_set() or self._context.signals.hand_over.is_set():
            return True
        self._report_if_due()
        if not self._is_unwanted and time.monotonic() >= self._next_cancellation_check:
            self._is_unwanted = self._context.jobs.should_stop(self._job_id, self._execution_id)
            self._next_cancellation_check = time.monotonic() + CANCELLATION_SECONDS
        return self._is_unwanted

    def check(self) -> None:
        """Raise Cancelled if the execution is to stop."""
        if self.is_cancelled():
            raise Cancelled("stopped between two steps")

    def wait(self, seconds: float) -> None:
        """Sleep; raise Cancelled as soon as the execution is to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.is_cancelled():
                raise Cancelled("stopped during a pause")
            time.sleep(0.1)

    def report_progress(self, ratio: float, stage: str) -> None:
        """Say how far the job is, 0 to 1. The record is told when a report is due, here or in `is_cancelled`."""
        self._reached = ratio, stage
        self._report_if_due()

    def _report_if_due(self) -> None:
        if self._reached is None or time.monotonic() < self._next_progress_report:
            return
        reached, self._reached = self._reached, None
        if not self._context.jobs.report_progress(self._job_id, self._execution_id, *reached):
            self._is_unwanted = True
        self._next_progress_report = time.monotonic() + self._context.progress_seconds
