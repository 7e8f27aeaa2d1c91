"""The RQ worker: runs one job at a time in the process that holds the model.

RQ's `SimpleWorker` has no work horse, so the model stays in memory; but it ignores the stop command and sends no
heartbeat while a job runs. This one does both, and ends its process when a job ignores its timeout. RQ's loop ends at
the first error of Redis; this one waits while the server is absent, or full and refuses writes. What RQ could not write
about a job is then left to housekeeping, since the job's record is the truth.
"""

import functools
import logging
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Retry, SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.utils import now
from rq.worker.base import SHUTDOWN_SIGNAL, WorkerStatus

from app import logs
from app.errors import StoreRefused
from worker.job_heartbeat import JobHeartbeat
from worker.redis_retries import REFUSALS, tolerate_redis_errors, wait_for_redis

logger = logging.getLogger("earmark.worker")

OVERRUN_GRACE = 30.0  # s past a job's timeout after which the process ends if the job still runs
WORKER_TTL = 30  # s; an idle worker blocks on its queue for 15 s less
# Pauses in s of a worker whose machine has a problem: before a retry of the job, by its attempts; and before the next
# job, by how many in a row have met the problem.
TROUBLE_PAUSES = (2.0, 4.0, 8.0, 15.0)
BAD_ENTRY_PAUSE = 1.0  # s after an entry of the queue that RQ cannot read; housekeeping replaces it

Task = Callable[..., Retry | None]
Reply = TypeVar("Reply")


class TaskRefused(Exception):
    """An entry of the queue names something that is not a task."""


class TimedOut(BaseException):
    """A job is past its timeout. Not an `Exception`, so that no `except Exception` in a library can swallow it."""


class Deadline(UnixSignalDeathPenalty):
    """RQ's death penalty, which raises `TimedOut` instead of `JobTimeoutException`."""

    def __init__(self, timeout: int, exception: Any = JobTimeoutException, **details: Any) -> None:
        timeout_error: Any = TimedOut if exception is JobTimeoutException else exception
        super().__init__(timeout, timeout_error, **details)


class Signals:
    """Events that concern the running job; set by other threads, signal handlers and the job itself."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hand_over = threading.Event()
        self.trouble = threading.Event()  # this machine has a problem, such as a full disk
        self.refusal: StoreRefused | None = None  # of the store, which refuses this worker's next jobs too

    def clear(self) -> None:
        """Reset all events before the next job."""
        self.stop.clear()
        self.hand_over.clear()
        self.trouble.clear()
        self.refusal = None


class WorkerJob(Job):
    """A job that can name only a task of `tasks`: a queue's entry must not import code by name.

    `func` is the task with the execution's id bound: the task is `task(execution_id, *arguments)`.
    """

    tasks: ClassVar[Mapping[str, Task]] = {}
    execution_id: str = ""
    # Callbacks are importable names too, and no job here has any.
    success_callback = None  # pyright: ignore[reportAssignmentType]
    failure_callback = None  # pyright: ignore[reportAssignmentType]
    stopped_callback = None  # pyright: ignore[reportAssignmentType]

    @property
    def func(self) -> Task:
        """The task that the job names. Raises `TaskRefused`."""
        task = self.tasks.get(self.func_name or "")
        if task is None:
            raise TaskRefused(f"not a task: {self.func_name!r}")
        return functools.partial(task, self.execution_id)


class EarmarkWorker(SimpleWorker):
    """RQ worker for one queue and a loaded model.

    queue: its name; one only, because only then RQ loses no job in a crash (BLMOVE).
    tasks: dotted name -> task(execution_id, *arguments); nothing else is run.
    signals: the events that tasks check while they run.
    heartbeat_seconds: s between heartbeats of a running job.
    heartbeat_timeout: s without a heartbeat after which housekeeping gives the job to another worker; several
        heartbeat_seconds.
    hand_over_after: s that a job may still run after SIGTERM before it is handed over, back to the queue.
    on_overrun: called with the ids of a job and its execution just before the process ends because of that job.
    on_idle: called after each job, before the next one is taken.
    on_stop: called when a signal to stop arrives; with True when a second one does, to hand the job over now.
    overrun_grace: s past its timeout that a job may still run before the process ends.
    """

    death_penalty_class = Deadline
    max_connection_wait_time = 4.0  # s between two tries to reach Redis again

    def __init__(
        self,
        queue: str,
        *,
        connection: Redis,
        tasks: Mapping[str, Task],
        signals: Signals,
        heartbeat_seconds: float,
        heartbeat_timeout: float,
        hand_over_after: float,
        on_overrun: Callable[[str, str], object],
        on_idle: Callable[[], object] = lambda: None,
        on_stop: Callable[[bool], object] = lambda now: None,
        overrun_grace: float = OVERRUN_GRACE,
    ) -> None:
        self.signals = signals
        self.heartbeat_seconds = heartbeat_seconds
        self.heartbeat_timeout = math.ceil(heartbeat_timeout)
        self.hand_over_after = hand_over_after
        self.on_overrun = on_overrun
        self.on_idle = on_idle
        self.on_stop = on_stop
        self.overrun_grace = overrun_grace
        self.is_stopping = False
        self.refusal: RedisError | StoreRefused | None = None  # because of which the loop has ended
        self.trouble_count = 0  # jobs in a row that ended in trouble
        job_class = type("TaskJob", (WorkerJob,), {"tasks": dict(tasks)})
        super().__init__(
            [queue],
            name=f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}",
            connection=connection,
            job_class=job_class,
            serializer="json",
            worker_ttl=WORKER_TTL,
            log_job_description=False,
        )

    def expect_signals(self) -> None:
        """Let a signal to stop, from now on, end `work` before its first job; RQ's own handlers follow in its loop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(self, "is_stopping", True))

    def is_told_to_stop(self) -> bool:
        """Return whether a signal to stop has arrived."""
        return self.is_stopping

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Return `heartbeat_timeout`: RQ's default, the job's timeout and a minute, is far too late."""
        return self.heartbeat_timeout

    def clean_registries(self) -> None:
        """Clean all registries but that of started jobs: RQ judges heartbeats by this machine's clock, housekeeping by
        that of Redis."""
        for queue in self.queues:
            worker_registration.clean_worker_registry(queue)
            FailedJobRegistry(queue=queue).cleanup()
        self.last_cleaned_at = now()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job in the main thread, beside a thread that sends its heartbeat. Raises StopRequested if the store
        refuses this worker."""
        self.signals.clear()
        with tolerate_redis_errors():
            self._run_job(job, queue)
        with tolerate_redis_errors():  # whatever became of the job
            self.on_idle()
        self.set_state(WorkerStatus.IDLE)
        if self.signals.refusal is not None:
            self.refusal = self.signals.refusal
            raise StopRequested
        self._pause_in_trouble()

    def _run_job(self, job: Job, queue: Queue) -> None:
        execution = self.prepare_execution(job)
        job.execution_id = execution.id  # pyright: ignore[reportAttributeAccessIssue]
        heartbeat = self._heartbeat(job, execution)
        heartbeat.start()
        try:
            with logs.job_context(job.id):
                self.perform_job(job, queue, execution)
        finally:
            heartbeat.stop()

    def _pause_in_trouble(self) -> None:
        """Leave the next jobs to other workers for a while if this machine would fail them one by one."""
        if not self.signals.trouble.is_set():
            self.trouble_count = 0
            return
        seconds = TROUBLE_PAUSES[min(self.trouble_count, len(TROUBLE_PAUSES) - 1)]
        self.trouble_count += 1
        logger.warning("takes no job for %g s", seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_stopping:
            time.sleep(0.1)

    def _heartbeat(self, job: Job, execution: Execution) -> JobHeartbeat:
        timeout = float(job.timeout or self.queue_class.DEFAULT_TIMEOUT)
        return JobHeartbeat(
            beat=lambda: self.maintain_heartbeats(job, execution),
            interval=self.heartbeat_seconds,
            deadline=time.monotonic() + timeout + self.overrun_grace,
            on_overrun=lambda: self.on_overrun(job.id, execution.id),
        )

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Send the heartbeat of a running job: first what housekeeping looks at, which a full server executes too.

        RQ's heartbeat updates one field of the execution's hash. If that has expired, after a pause of this process, it
        is written anew: RQ cannot read a hash with that field alone when the job ends.
        """
        if not self.connection.expire(execution.key, self.heartbeat_timeout):
            execution.save(self.heartbeat_timeout)
        super().maintain_heartbeats(job, execution)

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Record the end only: RQ also sends a heartbeat, which would recreate fields of a deleted job."""
        job.ended_at = now()

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        with tolerate_redis_errors():
            if not self._is_reassigned(job, execution):
                super().handle_job_success(job, queue, started_job_registry, execution)

    def handle_job_retry(
        self, job: Job, queue: Queue, retry: Retry, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        with tolerate_redis_errors():
            if not self._is_reassigned(job, execution):
                super().handle_job_retry(job, queue, retry, started_job_registry, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        if execution is None or not self._is_reassigned(job, execution):
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _is_reassigned(self, job: Job, execution: Execution) -> bool:
        """Whether housekeeping has given the job to another worker, because this one seemed dead.

        Then RQ's records of the job belong to the other execution, and this one only removes its own.
        """
        if self.connection.zscore(job.started_job_registry.key, execution.composite_key) is not None:
            return False
        logger.warning("%s: reassigned to another worker, because no heartbeat arrived", job.id)
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline, execution)
            pipeline.execute()
        return True

    # Calls to Redis of RQ's loop: those that it cannot do without are repeated, the others may fail

    def register_birth(self) -> None:
        with suppress(ValueError):  # this name exists: the reply to an earlier try was lost
            self._wait_for_redis(super().register_birth)

    def subscribe(self) -> None:
        self._wait_for_redis(super().subscribe)

    def check_for_suspension(self, burst: bool) -> None:
        if self.is_stopping:  # since before RQ's loop and its handlers of signals
            raise StopRequested
        self._wait_for_redis(super().check_for_suspension, burst)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Take the next job; entries that RQ cannot read are left to housekeeping."""
        while True:
            try:
                return self._wait_for_redis(super().dequeue_job_and_maintain_ttl, timeout, max_idle_time)
            except StopRequested:
                raise
            except Exception:
                logger.exception("an entry of the queue cannot be read")
                time.sleep(BAD_ENTRY_PAUSE)

    def run_maintenance_tasks(self) -> None:
        with tolerate_redis_errors():
            super().run_maintenance_tasks()

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        with tolerate_redis_errors():
            try:
                if pipeline is not None:
                    super().heartbeat(timeout, pipeline)
                else:
                    with self.connection.pipeline(transaction=False) as commands:  # one round trip, not three
                        super().heartbeat(timeout, commands)
                        commands.execute()
            except REFUSALS as error:
                # RQ waits for ever for a connection that is refused, and sends heartbeats meanwhile.
                self.refusal = error
                raise StopRequested from error

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        with tolerate_redis_errors():
            super().set_state(state, pipeline)

    def set_shutdown_requested_date(self) -> None:
        with tolerate_redis_errors():
            super().set_shutdown_requested_date()

    def register_death(self) -> None:
        with tolerate_redis_errors():
            super().register_death()

    def _wait_for_redis(self, call: Callable[..., Reply], *arguments: Any) -> Reply:
        """Return what a call returns. Raises StopRequested, which ends `work` before its loop or in it, also when Redis
        refuses the worker."""
        try:
            return wait_for_redis(call, *arguments, is_stopping=self.is_told_to_stop)
        except REFUSALS as error:
            self.refusal = error
            raise StopRequested from error

    def teardown(self) -> None:
        """Sign off, unless Redis would refuse that too."""
        if not isinstance(self.refusal, RedisError):
            super().teardown()

    def kill_horse(self, sig: signal.Signals = SHUTDOWN_SIGNAL) -> None:
        """Pass RQ's stop command on to the running task: there is no work horse to kill."""
        self.signals.stop.set()

    def handle_warm_shutdown_request(self) -> None:
        """On SIGTERM or Ctrl-C, let the job run for `hand_over_after` s; then hand it over."""
        super().handle_warm_shutdown_request()
        self.is_stopping = True
        timer = threading.Timer(self.hand_over_after, self.signals.hand_over.set)
        timer.daemon = True
        timer.start()
        self.on_stop(False)

    def request_force_stop(self, signum: int, frame: Any) -> None:
        """On a second signal, hand the job over now, between two batches."""
        self.signals.hand_over.set()
        self.on_stop(True)
