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
from app.errors import AlreadyFinished, EarmarkError, NotFound, Unavailable
from app.jobs.kinds import DETECTION, QUERY, SEPARATION
from app.jobs.lifecycle import Job, JobError
from models.errors import Cancelled, ModelsError
from worker import detecting, embedding, separating
from worker.context import ExecutionControl, WorkerContext
from worker.execution import JobExecution, Outcome
from worker.rq_worker import RESTS, TimedOut
from worker.separating import NoTargetLeft

logger = logging.getLogger("earmark.worker")

# RQ counts what a task itself gives back apart from deaths; how often a job may be tried is the record's to say.
RETRY = Retry(max=1_000_000)
INTERNAL = "The worker failed; its log says why."


Work = Callable[[JobExecution], Outcome]


def separate(context: WorkerContext, execution: str, job_id: str) -> Retry | None:
    """Do a separation that waits, and publish it."""
    return _execute(separating.separate, context, execution, job_id)


def detect(context: WorkerContext, execution: str, job_id: str) -> Retry | None:
    """Do a detection that waits, and publish it."""
    return _execute(detecting.detect, context, execution, job_id)


def embed(context: WorkerContext, execution: str, job_id: str) -> Retry | None:
    """Make a saved query that waits, and publish it."""
    return _execute(embedding.embed, context, execution, job_id)


TASKS: Mapping[str, Callable[[WorkerContext, str, str], Retry | None]] = {
    SEPARATION.task: separate,
    DETECTION.task: detect,
    QUERY.task: embed,
}


def _execute(work: Work, context: WorkerContext, execution: str, job_id: str) -> Retry | None:
    """Do a job that waits, and publish it; returns `AGAIN` where another execution should try.

    All that can go wrong with the job ends in its record. Delivered again, or to two workers at once, a job is
    published once: the record belongs to the execution that claimed it last. Raises RedisError.
    """
    job = context.jobs.claim(job_id, execution)
    if job is None:
        logger.info("%s: nothing to do", job_id)
        return None
    logs.request_id.set(job.request_id)  # until the job is over: see `GpuWorker.execute_job`
    logger.info("%s: begun, attempt %d", job_id, job.attempts)
    began = time.monotonic()
    outcome: Retry | None = None
    try:
        published = _run_and_publish(work, context, job, execution)
        logger.info("%s: %s in %.1f s", job_id, "done" if published else "dropped", time.monotonic() - began)
    except TimedOut:
        _fail(context, job, execution, JobError(code="timed_out", detail="The job took longer than is allowed."))
    except Cancelled:
        outcome = _stop_or_hand_over(context, job, execution)
    except NoTargetLeft as error:
        context.jobs.fail(job_id, execution, error.error, error.targets)
        logger.info("%s: no target left: %s", job_id, error.error.detail)
    except RedisError:
        raise  # the queue's own trouble is RQ's and housekeeping's
    except (Unavailable, OSError) as error:
        outcome = _try_again(context, job, execution, error)
        if isinstance(error, OSError):
            context.signals.trouble.set()
            outcome = outcome and _give_back_later(context, job, execution)
    except (EarmarkError, ModelsError) as error:
        _fail(context, job, execution, JobError(code=error.code, detail=str(error)))
    except Exception as error:
        outcome = _fail_internal(context, job, execution, error)
    return outcome


def _run_and_publish(work: Work, context: WorkerContext, job: Job, execution: str) -> bool:
    """Do the work, and publish it; what was stored and not published is removed."""
    published = False
    try:
        with context.scratch.job() as folder:
            outcome = work(JobExecution(context, job, execution, folder))
        result = outcome.result.model_dump()
        published = context.jobs.publish(job.id, execution, outcome.targets, result, outcome.warnings)
        return published
    finally:
        if not published:
            _remove_outputs(context, job, execution)


def _remove_outputs(context: WorkerContext, job: Job, execution: str) -> None:
    """At once if the store answers; else housekeeping does it, by the ledger that `claim` wrote to."""
    try:
        context.storage.delete_prefix(context.jobs.output_prefix(job, execution))
    except (Unavailable, NotFound) as error:
        logger.warning("%s: outputs left to housekeeping: %s", job.id, error)


def _fail(context: WorkerContext, job: Job, execution: str, error: JobError) -> None:
    context.jobs.fail(job.id, execution, error)
    logger.info("%s: %s: %s", job.id, error.code, error.detail)


def _fail_internal(context: WorkerContext, job: Job, execution: str, error: Exception) -> Retry | None:
    """What is nobody's fault but ours, or the machine's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        logger.exception("%s: out of memory", job.id)
        _fail(context, job, execution, JobError(code="out_of_memory", detail="The model ran out of memory."))
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        torch.cuda.empty_cache()
        return None
    if isinstance(error, torch.AcceleratorError):
        # The device no longer works for this process. Another one shall try; this one ends.
        os.kill(os.getpid(), signal.SIGTERM)
        return _try_again(context, job, execution, error)
    logger.exception("%s: failed", job.id)
    _fail(context, job, execution, JobError(code="internal", detail=INTERNAL))
    return None


def _stop_or_hand_over(context: WorkerContext, job: Job, execution: str) -> Retry | None:
    """Canceled, deleted, taken by another execution, stopped through RQ, or handed over as the worker ends."""
    if context.signals.hand_over.is_set() and context.jobs.release(job.id, execution):
        logger.info("%s: handed over", job.id)
        return RETRY
    if context.signals.stop.is_set() and not context.jobs.should_stop(job.id, execution):
        with suppress(AlreadyFinished, NotFound):
            context.jobs.cancel(job.id)
    context.jobs.confirm_cancel(job.id, execution)
    logger.info("%s: stopped", job.id)
    return None


def _give_back_later(context: WorkerContext, job: Job, execution: str) -> Retry | None:
    """`AGAIN` after a while that grows with the attempts: workers that share a full disk would use them up at once."""
    try:
        ExecutionControl(context, job.id, execution).wait(RESTS[min(job.attempts, len(RESTS)) - 1])
    except Cancelled:
        return _stop_or_hand_over(context, job, execution)
    return RETRY


def _try_again(context: WorkerContext, job: Job, execution: str, error: Exception) -> Retry | None:
    """What may pass is tried again, by whoever is free; the last attempt says what it was."""
    if job.attempts < context.settings.job_attempts:
        logger.warning("%s: attempt %d failed, to be tried again: %s", job.id, job.attempts, error)
        return RETRY
    logger.error("%s: the last attempt failed: %s", job.id, error)
    code = error.code if isinstance(error, EarmarkError) else "internal"
    detail = error.detail if isinstance(error, EarmarkError) else INTERNAL
    _fail(context, job, execution, JobError(code=code, detail=detail))
    return None
