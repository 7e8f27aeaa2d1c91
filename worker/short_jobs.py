"""Short jobs beside the main thread's job, in a thread of the same process and with the same model.

While one job's networks compute, the other one is fetched, decoded, encoded or stored, and neither waits at the end of
every layer for the threads of a second core. The thread is a worker of its own for everybody else, one that takes short
jobs only, as `--short` starts it: their size limits what two jobs take of memory and disk. A job whose execution has
died always goes to workers that take any job, hence to a main thread. So a job that crashes its process, which ends the
job beside it too, never runs again beside the same one, and costs others one attempt each.
"""

import logging
import os
import signal
import threading
from contextlib import suppress

from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from worker.redis_retries import REFUSALS, wait_for_redis
from worker.registry_heartbeat import RegistryHeartbeat
from worker.thread_worker import ThreadWorker

logger = logging.getLogger("earmark.worker")


class ShortJobs(threading.Thread):
    """Runs short jobs until its worker is told to stop.

    If it ends by itself, a part of the process is lost: then `is_lost` says so, and the process gets a signal to stop.
    """

    def __init__(self, worker: ThreadWorker, heartbeat: RegistryHeartbeat) -> None:
        super().__init__(name="earmark-short-jobs", daemon=True)
        self.worker = worker
        self.is_lost = False
        self._heartbeat = heartbeat

    def run(self) -> None:
        try:
            with suppress(StopRequested, *REFUSALS):
                wait_for_redis(self._heartbeat.announce, is_stopping=self.worker.is_told_to_stop)
                self._heartbeat.start()
                try:
                    self.worker.work(logging_level="WARNING")
                finally:
                    self._leave()
        finally:
            if not self.worker.is_stopping:
                logger.error("the thread for short jobs has ended")
                self.is_lost = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self) -> None:
        """Sign off; then jobs that are ready for workers of short jobs go to the others, if this was the last one."""
        self._heartbeat.stop()
        try:
            self.worker.on_idle()
        except RedisError as error:
            logger.warning("ready jobs are left to housekeeping: %s", error)
