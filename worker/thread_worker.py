"""The RQ worker outside of the main thread, where neither signals nor their alarms arrive."""

import ctypes
import threading
import time
from typing import Any

from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty

from worker.rq_worker import EarmarkWorker, TimedOut

_DEQUEUE_SECONDS = 1  # for which the worker blocks on its queue, and so notices late that it is to stop


class ThreadDeadline(BaseDeathPenalty):
    """RQ's death penalty for a thread: a timer raises `TimedOut` in it, as soon as it executes byte code. Unlike RQ's
    own, never after the job has ended."""

    def setup_death_penalty(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._thread = threading.get_ident()
        self._timer = threading.Timer(self._timeout, self._end_job)
        self._timer.daemon = True
        self._timer.start()

    def cancel_death_penalty(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            _raise_in(self._thread, None)  # withdraws what has not been raised yet

    def _end_job(self) -> None:
        with self._lock:
            if not self._is_over:
                _raise_in(self._thread, TimedOut)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    argument = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), argument)


class ThreadWorker(EarmarkWorker):
    """The RQ worker of a thread, which another thread tells to stop. Parameters as of `EarmarkWorker`."""

    death_penalty_class = ThreadDeadline  # pyright: ignore[reportAssignmentType]
    _hand_over_at = 0.0  # of the monotonic clock, once it is to stop

    def stop(self, now: bool = False) -> None:
        """Take no more jobs, and return from `work` when the job ends, or is handed over: after `hand_over_after` s, or
        now. May be called in a signal's handler, and again."""
        if not self.is_stopping:
            self._hand_over_at = time.monotonic() + self.hand_over_after
            self.handle_warm_shutdown_request()
        if now:
            self._hand_over_at = 0.0
            self.signals.hand_over.set()

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Take the next job. Raises StopRequested soon after `stop`, and as the main thread's does."""
        while not self.is_stopping:
            found = super().dequeue_job_and_maintain_ttl(timeout, _DEQUEUE_SECONDS)
            if found is not None:
                return found
        raise StopRequested

    def _run_job(self, job: Job, queue: Queue) -> None:
        if self.is_stopping and time.monotonic() >= self._hand_over_at:
            self.signals.hand_over.set()  # cleared when the job was taken, which `stop` came just before
        super()._run_job(job, queue)

    def _install_signal_handlers(self) -> Any:
        """Leave signals to the main thread."""
