"""The CPU threads of a worker process, shared by the jobs that it runs at the same time.

Two jobs with a thread each take a sixth less processor time than one after the other with two threads, which wait for
each other at the end of every layer; a job alone is faster with both.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# s for which a job that ends still has its share while another one runs: under load the next job begins at once, and
# a job of one window keeps the number of threads that it begins with.
_LINGER_SECONDS = 1.0


class SharedThreads:
    """Divides `total` threads, by default those that torch has now, among running jobs.

    linger: s for which a job that has ended beside another one still counts.
    """

    def __init__(self, total: int | None = None, linger: float = _LINGER_SECONDS) -> None:
        self.total = total or torch.get_num_threads()
        self._linger = linger
        self._lock = threading.Lock()
        self._jobs = 0
        self._jobs_before, self._before_until = 0, 0.0

    @contextmanager
    def job(self) -> Iterator[None]:
        """Count a job of the calling thread, which computes with its share from now on."""
        with self._lock:
            self._jobs += 1
        try:
            self.take_share()
            yield
        finally:
            with self._lock:
                if self._jobs > 1:
                    self._jobs_before, self._before_until = self._jobs, time.monotonic() + self._linger
                self._jobs -= 1

    def take_share(self) -> None:
        """Set the calling thread's number of threads to its share; to be called from time to time while a job runs,
        since others begin and end."""
        jobs = max(1, self._jobs)
        if time.monotonic() < self._before_until:
            jobs = max(jobs, self._jobs_before)
        share = max(1, self.total // jobs)
        if torch.get_num_threads() != share:  # in each thread a number of its own, which this call initialises
            torch.set_num_threads(share)
