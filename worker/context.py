"""What a task works with, and how it hears that it should stop."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.settings import Settings
from app.storage import Storage
from models.errors import Cancelled
from worker.rq_worker import Signals
from worker.scratch import Scratch

if TYPE_CHECKING:
    from models.engine import Engine

logger = logging.getLogger("earmark.worker")

LOOK_SECONDS = 0.25  # between two looks at the record for a request to cancel
TELL_SECONDS = 0.25  # between two reports of progress within a stage


@dataclass(frozen=True)
class WorkerContext:
    """One worker process's model, stores and signals; the same for every job."""

    engine: "Engine"
    jobs: JobRepository
    quotas: Quotas
    storage: Storage
    scratch: Scratch
    signals: Signals
    settings: Settings


class ExecutionControl:
    """One execution's eye on the outside: tells progress, and says when to stop.

    Redis is asked a few times a second, however often the methods are called.
    """

    def __init__(self, context: WorkerContext, job_id: str, execution: str) -> None:
        self._context = context
        self._job_id = job_id
        self._execution = execution
        self._unwanted = False
        self._look_next = 0.0
        self._tell_next = 0.0
        self._stage = ""

    def is_cancelled(self) -> bool:
        """Whether to stop: the record says so, or RQ's stop command, or the worker shuts down."""
        if self._context.signals.stop.is_set() or self._context.signals.hand_over.is_set():
            return True
        if not self._unwanted and time.monotonic() >= self._look_next:
            self._unwanted = self._context.jobs.should_stop(self._job_id, self._execution)
            self._look_next = time.monotonic() + LOOK_SECONDS
        return self._unwanted

    def wait(self, seconds: float) -> None:
        """Let time pass; raises Cancelled as soon as there is a reason to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.is_cancelled():
                raise Cancelled("stopped while it waited")
            time.sleep(0.1)

    def progress(self, ratio: float, stage: str) -> None:
        """Report how far the job is, 0 to 1."""
        if stage == self._stage and time.monotonic() < self._tell_next:
            return
        self._stage = stage
        if not self._context.jobs.report_progress(self._job_id, self._execution, ratio, stage):
            self._unwanted = True
        self._tell_next = time.monotonic() + TELL_SECONDS
