"""`python -m tests.skew.holding_worker`: a real RQ worker whose tasks take seconds to start, since they load no model.

It fails jobs whose metadata says so, and holds all others until it dies.
"""

import threading
import time

from app.jobs.kinds import TASK_NAMES
from app.jobs.lifecycle import JobError
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import queue_name
from app.model_registry.registry import ModelRegistry
from app.redis_client import connect
from app.settings import Settings
from worker.rq_worker import EarmarkWorker, Signals


def main() -> None:
    """Take jobs of the model `base` until the process is killed."""
    settings = Settings()
    redis = connect(settings)
    jobs, registry = JobRepository(redis, settings), ModelRegistry(redis, settings)

    def task(execution: str, job_id: str) -> None:
        job = jobs.claim(job_id, execution)
        if job is None:
            return
        if job.metadata.get("end") == "fail":
            jobs.fail(job_id, execution, JobError(code="internal", detail="As the test wants."))
            return
        while jobs.report_progress(job_id, execution, 0.5, "separating"):
            time.sleep(0.2)

    worker = EarmarkWorker(
        queue_name("base@small"),
        connection=redis,
        tasks=dict.fromkeys(TASK_NAMES.values(), task),
        signals=Signals(),
        heartbeat_seconds=settings.heartbeat_seconds,
        heartbeat_timeout=settings.heartbeat_timeout,
        hand_over_after=20.0,
        on_overrun=lambda _job, _execution: None,
        on_idle=lambda: jobs.fair_queue.fill("base@small"),
    )

    def beat() -> None:
        while True:
            registry.heartbeat("base@small", worker.name)
            jobs.fair_queue.fill("base@small")
            time.sleep(settings.heartbeat_seconds)

    threading.Thread(target=beat, daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()
