"""The RQ worker: holds the model, takes one job at a time, and notices when it should let go.

RQ's own `SimpleWorker` keeps the model in memory, but it neither listens to the stop command nor beats while
a job runs. This one does both, and ends its process when a job will not end.
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
from typing import Any, ClassVar

from redis import Redis
from redis.exceptions import RedisError
from rq import Retry, SimpleWorker, worker_registration
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.utils import now
from rq.worker.base import SHUTDOWN_SIGNAL, WorkerStatus

from app import logs

logger = logging.getLogger("earmark.worker")

OVERRUN_GRACE = 30.0  # s past its timeout after which a job that still runs takes the process down
EXIT_OVERRUN = 70
WORKER_TTL = 30  # s; how long an idle worker blocks on its queue is this less 15
# s that a worker in trouble keeps the job that met with it, and then takes none: the first time, the second, ...
RESTS = (2.0, 4.0, 8.0, 15.0)

Task = Callable[..., Retry | None]


class TaskRefused(Exception):
    """A job in the queue names something that is not a task."""


class TimedOut(BaseException):
    """A job is past its timeout. Not an `Exception`, so that no `except Exception` on the way can swallow it."""


class Deadline(UnixSignalDeathPenalty):
    """RQ's alarm clock, raising `TimedOut` where RQ would raise its `JobTimeoutException`."""

    def __init__(self, timeout: int, exception: Any = JobTimeoutException, **details: Any) -> None:
        raised: Any = TimedOut if exception is JobTimeoutException else exception
        super().__init__(timeout, raised, **details)


class Signals:
    """What the outside asks of the job that runs now; set from other threads and signal handlers."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hand_over = threading.Event()
        self.trouble = threading.Event()  # the job met with what is wrong with this machine: a full disk

    def clear(self) -> None:
        """Forget what was asked of the last job."""
        self.stop.clear()
        self.hand_over.clear()
        self.trouble.clear()


class WorkerJob(Job):
    """A job that may name only a task of `tasks`: a queue that anybody can write must not import code by name.

    `func` is the task with the execution's id already given, as `task(execution_id, *arguments)`.
    """

    tasks: ClassVar[Mapping[str, Task]] = {}
    execution_id: str = ""
    # Callbacks are importable names too, and none of our jobs has any.
    success_callback = None  # pyright: ignore[reportAssignmentType]
    failure_callback = None  # pyright: ignore[reportAssignmentType]
    stopped_callback = None  # pyright: ignore[reportAssignmentType]

    @property
    def func(self) -> Task:
        """The task that the job names; raises `TaskRefused`."""
        task = self.tasks.get(self.func_name or "")
        if task is None:
            raise TaskRefused(f"not a task: {self.func_name!r}")
        return functools.partial(task, self.execution_id)


class Watch(threading.Thread):
    """Beats for a running job; past the job's deadline and a grace it ends the process.

    interval: s between beats. on_overrun is called just before the end, to record why.
    """

    def __init__(
        self, beat: Callable[[], None], interval: float, deadline: float, on_overrun: Callable[[], object]
    ) -> None:
        super().__init__(name="earmark-watch", daemon=True)
        self.beat = beat
        self.interval = interval
        self.deadline = deadline
        self.on_overrun = on_overrun
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.interval):
            if time.monotonic() > self.deadline:
                self.end_process()
            try:
                self.beat()
            except RedisError as error:
                logger.warning("heartbeat lost: %s", error)
            except Exception:  # whatever it is, the clock must go on
                logger.exception("heartbeat failed")

    def end_process(self) -> None:
        """End it at once, with EXIT_OVERRUN: no exception reaches a call that does not come back."""
        logger.critical("a job ignores its timeout: this process ends")
        try:
            self.on_overrun()
        finally:
            os._exit(EXIT_OVERRUN)

    def stop(self) -> None:
        """The job is over; wait for the last beat."""
        self.over.set()
        self.join()


class EarmarkWorker(SimpleWorker):
    """Works on one queue with a loaded model.

    queue: its name; one only, because RQ loses no job in a crash only then (BLMOVE).
    tasks: dotted name -> task(execution_id, *arguments); nothing else is run.
    signals: what the tasks look at while they run.
    heartbeat_seconds, heartbeat_timeout: s between beats, and without one after which housekeeping gives the job
        to another worker; the first must fit into the second a few times.
    hand_over_after: s that a job may still run after SIGTERM before it goes back to the queue.
    on_overrun: called with a job's and its execution's id just before the process ends for its sake.
    on_idle: called when a job's work is done, before the next one is looked for.
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
    ) -> None:
        self.signals = signals
        self.heartbeat_seconds = heartbeat_seconds
        self.heartbeat_timeout = math.ceil(heartbeat_timeout)
        self.hand_over_after = hand_over_after
        self.on_overrun = on_overrun
        self.on_idle = on_idle
        self.told_to_stop = False
        self.troubles = 0
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

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """RQ's own is the job's whole timeout and a minute more: far too late to notice a death."""
        return self.heartbeat_timeout

    def clean_registries(self) -> None:
        """RQ's own also gives jobs away whose heartbeat is late by this machine's clock: that is housekeeping's, by
        Redis's clock."""
        for queue in self.queues:
            worker_registration.clean_worker_registry(queue)
            FailedJobRegistry(queue=queue).cleanup()
        self.last_cleaned_at = now()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Runs a job here, in the main thread, with a thread beside it that beats."""
        self.signals.clear()
        execution = self.prepare_execution(job)
        job.execution_id = execution.id  # pyright: ignore[reportAttributeAccessIssue]
        watch = self._watch(job, execution)
        watch.start()
        try:
            with logs.job_context(job.id):
                self.perform_job(job, queue, execution)
        finally:
            watch.stop()
        self.set_state(WorkerStatus.IDLE)
        try:
            self.on_idle()
        except RedisError as error:  # if it stays away, the next look for a job says so
            logger.warning("the queue's server does not answer: %s", error)
        self._rest()

    def _rest(self) -> None:
        """In trouble, leave the next jobs to others for a while: this machine would only spoil them, one by one."""
        if not self.signals.trouble.is_set():
            self.troubles = 0
            return
        seconds = RESTS[min(self.troubles, len(RESTS) - 1)]
        self.troubles += 1
        logger.warning("takes no job for %g s", seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.told_to_stop:
            time.sleep(0.1)

    def _watch(self, job: Job, execution: Execution) -> Watch:
        timeout = float(job.timeout or self.queue_class.DEFAULT_TIMEOUT)
        return Watch(
            beat=lambda: self.maintain_heartbeats(job, execution),
            interval=self.heartbeat_seconds,
            deadline=time.monotonic() + timeout + OVERRUN_GRACE,
            on_overrun=lambda: self.on_overrun(job.id, execution.id),
        )

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """RQ's own also beats once more, and so would bring back a few fields of a job that is gone."""
        job.ended_at = now()

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        if not self._has_lost(job, execution):
            super().handle_job_success(job, queue, started_job_registry, execution)

    def handle_job_retry(
        self, job: Job, queue: Queue, retry: Retry, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        if not self._has_lost(job, execution):
            super().handle_job_retry(job, queue, retry, started_job_registry, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        if execution is None or not self._has_lost(job, execution):
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _has_lost(self, job: Job, execution: Execution) -> bool:
        """Whether this worker was taken for dead and its job given to another: RQ's notes on the job are not its
        any more, and to write them would hurt the other."""
        if self.connection.zscore(job.started_job_registry.key, execution.composite_key) is not None:
            return False
        logger.warning("%s: was taken for dead; the job is another worker's", job.id)
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline, execution)
            pipeline.execute()
        return True

    def kill_horse(self, sig: signal.Signals = SHUTDOWN_SIGNAL) -> None:
        """RQ's stop command ends here; there is no horse, so the running task is told."""
        self.signals.stop.set()

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or Ctrl-C: the running job may finish, for a while; then it goes back to the queue."""
        super().handle_warm_shutdown_request()
        self.told_to_stop = True
        timer = threading.Timer(self.hand_over_after, self.signals.hand_over.set)
        timer.daemon = True
        timer.start()

    def request_force_stop(self, signum: int, frame: Any) -> None:
        """A second signal: the job goes back to the queue now, between two batches."""
        self.signals.hand_over.set()
