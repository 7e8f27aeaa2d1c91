"""What jobs on the queue may ask for. Each task takes an execution's id, and may be delivered more than once."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from redis.exceptions import RedisError
from rq import Retry

from app import logs
from app.errors import AlreadyOver, EarmarkError, NotFound, Unavailable
from app.jobs.kinds import DETECTION, QUERY, SEPARATION
from app.jobs.lifecycle import Job, JobError
from models.errors import Cancelled, ModelsError
from worker.context import Attention, Workbench
from worker.detecting import detected
from worker.embedding import embedded
from worker.execution import Execution, Outcome
from worker.rq_worker import RESTS, TimedOut
from worker.separating import NoTargetLeft, separated

logger = logging.getLogger("earmark.worker")

# RQ counts what a task itself gives back apart from deaths; how often a job may be tried is the record's to say.
AGAIN = Retry(max=1_000_000)
INTERNAL = "The worker failed; its log says why."


Work = Callable[[Execution], Outcome]


def separate(bench: Workbench, execution: str, job_id: str) -> Retry | None:
    """Do a separation that waits, and publish it."""
    return _do(separated, bench, execution, job_id)


def detect(bench: Workbench, execution: str, job_id: str) -> Retry | None:
    """Do a detection that waits, and publish it."""
    return _do(detected, bench, execution, job_id)


def embed(bench: Workbench, execution: str, job_id: str) -> Retry | None:
    """Make a saved query that waits, and publish it."""
    return _do(embedded, bench, execution, job_id)


TASKS: Mapping[str, Callable[[Workbench, str, str], Retry | None]] = {
    SEPARATION.task: separate,
    DETECTION.task: detect,
    QUERY.task: embed,
}


def _do(work: Work, bench: Workbench, execution: str, job_id: str) -> Retry | None:
    """Do a job that waits, and publish it; returns `AGAIN` where another execution should try.

    All that can go wrong with the job ends in its record. Delivered again, or to two workers at once, a job is
    published once: the record belongs to the execution that claimed it last. Raises RedisError.
    """
    job = bench.jobs.claim(job_id, execution)
    if job is None:
        logger.info("%s: nothing to do", job_id)
        return None
    logs.request_id.set(job.request_id)  # until the job is over: see `GpuWorker.execute_job`
    logger.info("%s: begun, attempt %d", job_id, job.attempts)
    began = time.monotonic()
    outcome: Retry | None = None
    try:
        published = _published(work, bench, job, execution)
        logger.info("%s: %s in %.1f s", job_id, "done" if published else "dropped", time.monotonic() - began)
    except TimedOut:
        _fail(bench, job, execution, JobError(code="timed_out", detail="The job took longer than is allowed."))
    except Cancelled:
        outcome = _let_go(bench, job, execution)
    except NoTargetLeft as error:
        bench.jobs.fail(job_id, execution, error.error, error.targets)
        logger.info("%s: no target left: %s", job_id, error.error.detail)
    except RedisError:
        raise  # the queue's own trouble is RQ's and housekeeping's
    except (Unavailable, OSError) as error:
        outcome = _try_again(bench, job, execution, error)
        if isinstance(error, OSError):
            bench.signals.trouble.set()
            outcome = outcome and _give_back_later(bench, job, execution)
    except (EarmarkError, ModelsError) as error:
        _fail(bench, job, execution, JobError(code=error.code, detail=str(error)))
    except Exception as error:
        outcome = _unforeseen(bench, job, execution, error)
    return outcome


def _published(work: Work, bench: Workbench, job: Job, execution: str) -> bool:
    """Do the work, and publish it; what was stored and not published is removed."""
    published = False
    try:
        with bench.scratch.job() as folder:
            outcome = work(Execution(bench, job, execution, folder))
        result = outcome.result.model_dump()
        published = bench.jobs.publish(job.id, execution, outcome.targets, result, outcome.warnings)
        return published
    finally:
        if not published:
            _remove_outputs(bench, job, execution)


def _remove_outputs(bench: Workbench, job: Job, execution: str) -> None:
    """At once if the store answers; else housekeeping does it, by the ledger that `claim` wrote to."""
    try:
        bench.storage.delete_prefix(bench.jobs.output_prefix(job, execution))
    except (Unavailable, NotFound) as error:
        logger.warning("%s: outputs left to housekeeping: %s", job.id, error)


def _fail(bench: Workbench, job: Job, execution: str, error: JobError) -> None:
    bench.jobs.fail(job.id, execution, error)
    logger.info("%s: %s: %s", job.id, error.code, error.detail)


def _unforeseen(bench: Workbench, job: Job, execution: str, error: Exception) -> Retry | None:
    """What is nobody's fault but ours, or the machine's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        logger.exception("%s: out of memory", job.id)
        _fail(bench, job, execution, JobError(code="out_of_memory", detail="The model ran out of memory."))
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        torch.cuda.empty_cache()
        return None
    if isinstance(error, torch.AcceleratorError):
        # The device no longer works for this process. Another one shall try; this one ends.
        os.kill(os.getpid(), signal.SIGTERM)
        return _try_again(bench, job, execution, error)
    logger.exception("%s: failed", job.id)
    _fail(bench, job, execution, JobError(code="internal", detail=INTERNAL))
    return None


def _let_go(bench: Workbench, job: Job, execution: str) -> Retry | None:
    """Canceled, deleted, taken by another execution, stopped through RQ, or handed over as the worker ends."""
    if bench.signals.hand_over.is_set() and bench.jobs.release(job.id, execution):
        logger.info("%s: handed over", job.id)
        return AGAIN
    if bench.signals.stop.is_set() and not bench.jobs.should_stop(job.id, execution):
        with suppress(AlreadyOver, NotFound):
            bench.jobs.cancel(job.id)
    bench.jobs.stop(job.id, execution)
    logger.info("%s: stopped", job.id)
    return None


def _give_back_later(bench: Workbench, job: Job, execution: str) -> Retry | None:
    """`AGAIN` after a while that grows with the attempts: workers that share a full disk would use them up at once."""
    try:
        Attention(bench, job.id, execution).wait(RESTS[min(job.attempts, len(RESTS)) - 1])
    except Cancelled:
        return _let_go(bench, job, execution)
    return AGAIN


def _try_again(bench: Workbench, job: Job, execution: str, error: Exception) -> Retry | None:
    """What may pass is tried again, by whoever is free; the last attempt says what it was."""
    if job.attempts < bench.settings.job_attempts:
        logger.warning("%s: attempt %d failed, to be tried again: %s", job.id, job.attempts, error)
        return AGAIN
    logger.error("%s: the last attempt failed: %s", job.id, error)
    code = error.code if isinstance(error, EarmarkError) else "internal"
    detail = error.detail if isinstance(error, EarmarkError) else INTERNAL
    _fail(bench, job, execution, JobError(code=code, detail=detail))
    return None
