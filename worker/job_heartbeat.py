"""The heartbeat of a running job, by which housekeeping tells that it is not lost."""

import logging
import os
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

logger = logging.getLogger("earmark.worker")

EXIT_OVERRUN = 70


class JobHeartbeat(threading.Thread):
    """Sends the heartbeat of a running job, and ends the process if the job still runs at `deadline`.

    interval: s between beats. deadline: of the monotonic clock. on_overrun: called just before the process ends.
    """

    def __init__(
        self, beat: Callable[[], None], interval: float, deadline: float, on_overrun: Callable[[], object]
    ) -> None:
        super().__init__(name="earmark-heartbeat", daemon=True)
        self.beat = beat
        self.interval = interval
        self.deadline = deadline
        self.on_overrun = on_overrun
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(self.interval):
            if time.monotonic() > self.deadline:
                self.end_process()
            try:
                self.beat()
            except RedisError as error:
                logger.warning("heartbeat lost: %s", error)
            except Exception:  # the deadline must still be checked
                logger.exception("heartbeat failed")

    def end_process(self) -> None:
        """End the process at once with EXIT_OVERRUN: an exception would not reach a call that never returns."""
        logger.critical("a job ignores its timeout: this process ends")
        try:
            self.on_overrun()
        finally:
            os._exit(EXIT_OVERRUN)

    def stop(self) -> None:
        """Stop after the job has ended, and wait for a beat in progress."""
        self.stopping.set()
        self.join()
