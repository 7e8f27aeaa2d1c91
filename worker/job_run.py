"""The run of one execution, whatever the kind of job: claim it, do its work, then publish, fail, retry or hand over."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import torch
from redis.exceptions import RedisError, ResponseError
from rq import Retry

from app import logs
from app.errors import AlreadyFinished, DiskFull, EarmarkError, NotFound, StoreRefused, Unavailable
from app.jobs.lifecycle import JobError, StoredFields
from models.errors import Cancelled, ModelsError
from worker.context import WorkerContext
from worker.execution import JobExecution, NoTargetLeft, Outcome
from worker.rq_worker import TROUBLE_PAUSES, TimedOut
from worker.store_access import find_refusal

logger = logging.getLogger("earmark.worker")

# The job's record limits its attempts; RQ counts the returns of a task apart from the deaths of a worker.
RETRY = Retry(max=1_000_000)
INTERNAL = "The worker failed; its log says why."

# What a kind of job does, in the execution's scratch folder; it stores outputs, and `run` publishes the outcome.
# Raises NoTargetLeft; Cancelled; ModelsError or EarmarkError for an error of the job as a whole; StoreUnavailable where
# the store does not come back; OSError for an error of this machine.
Work = Callable[[JobExecution], Outcome]


def run(work: Work, context: WorkerContext, execution_id: str, job_id: str) -> Retry | None:
    """Claim a queued job, do its work and publish it; return RETRY where another execution should try.

    Every failure of the job ends in its record. A job that is delivered twice, or to two workers at once, is published
    once: the record belongs to the execution that claimed it last. Raises RedisError.
    """
    job = context.jobs.claim(job_id, execution_id, context.engine.model_id)
    if job is None:
        logger.info("%s: nothing to do", job_id)
        return None
    logs.request_id.set(job.request_id)  # until the job ends: see `EarmarkWorker.execute_job`
    logger.info("%s: begun, attempt %d", job_id, job.attempts)
    execution = JobExecution(context, job, execution_id)
    try:
        _work_and_publish(work, execution)
    except TimedOut:
        _fail(execution, "timed_out", "The job took longer than is allowed.")
    except Cancelled:
        return _stop_or_hand_over(execution)
    except NoTargetLeft as error:
        context.jobs.fail(job_id, execution_id, error.error, error.targets, error.warnings)
        logger.info("%s: no target left: %s", job_id, error.error.detail)
    except RedisError:
        raise  # RQ and housekeeping recover from a failure of Redis
    except StoreRefused as error:
        return _release_or_retry(execution, error)
    except Unavailable as error:
        return _retry(execution, error)
    except OSError as error:
        return _retry_after_pause(execution, error)
    except (EarmarkError, ModelsError) as error:
        _fail(execution, error.code, str(error))
    except Exception as error:
        return _fail_internal(execution, error)
    return None


def _work_and_publish(work: Work, execution: JobExecution) -> None:
    """Do the work and publish its outcome; outputs that are surely not published are removed.

    Where the reply to `publish` is lost, the record may refer to them: they stay, and housekeeping removes them by the
    ledger of orphaned objects if it does not.
    """
    context, job, start = execution.context, execution.job, time.monotonic()
    is_published, is_unknown, stored = False, False, None
    try:
        execution.load_request()
        with context.scratch.job() as execution.folder, context.threads.job():
            outcome = work(execution)
        result = outcome.result.model_dump()
        stored = execution.store_outcome(outcome, result)
        is_unknown = True
        is_published = context.jobs.publish(
            job.id, execution.id, outcome.targets, result, outcome.warnings, stored, outcome.excerpt_bytes
        )
        is_unknown = False
    except ResponseError:  # the server has refused the change
        is_unknown = False
        raise
    finally:
        if not is_published and not is_unknown:
            _remove_outputs(execution, stored)
    logger.info("%s: %s in %.1f s", job.id, "done" if is_published else "dropped", time.monotonic() - start)


def _remove_outputs(execution: JobExecution, stored: StoredFields | None) -> None:
    """Remove outputs now if the store answers; otherwise housekeeping does, by the ledger of orphaned objects."""
    context, job = execution.context, execution.job
    try:
        context.storage.delete_prefix(context.jobs.output_prefix(job, execution.id))
        if stored is not None:
            context.storage.delete(stored.key)
    except (Unavailable, NotFound) as error:
        logger.warning("%s: outputs left to housekeeping: %s", job.id, error)


def _fail(execution: JobExecution, code: str, detail: str) -> None:
    execution.context.jobs.fail(execution.job.id, execution.id, JobError(code=code, detail=detail))
    logger.info("%s: %s: %s", execution.job.id, code, detail)


def _fail_internal(execution: JobExecution, error: Exception) -> Retry | None:
    """Handle an error that neither the request nor the store explains: a defect, or this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        logger.exception("%s: out of memory", execution.job.id)
        _fail(execution, "out_of_memory", "The model ran out of memory.")
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        torch.cuda.empty_cache()
        return None
    if isinstance(error, torch.AcceleratorError):
        # The device no longer works for this process: it ends, and another worker retries.
        os.kill(os.getpid(), signal.SIGTERM)
        return _retry(execution, error)
    logger.exception("%s: failed", execution.job.id)
    _fail(execution, "internal", INTERNAL)
    return None


def _stop_or_hand_over(execution: JobExecution) -> Retry | None:
    """End an execution that was cancelled, deleted, reassigned or stopped through RQ, or hand its job over."""
    context, job = execution.context, execution.job
    if context.signals.hand_over.is_set() and context.jobs.release(job.id, execution.id):
        logger.info("%s: handed over", job.id)
        return RETRY
    if context.signals.stop.is_set() and not context.jobs.should_stop(job.id, execution.id):
        with suppress(AlreadyFinished, NotFound):
            context.jobs.cancel(job.id)
    context.jobs.confirm_cancel(job.id, execution.id)
    logger.info("%s: stopped", job.id)
    return None


def _retry(execution: JobExecution, error: Exception) -> Retry | None:
    """Retry after an error that may pass; the last attempt fails with it."""
    job = execution.job
    if job.attempts < execution.context.settings.job_attempts:
        logger.warning("%s: attempt %d failed, to be retried: %s", job.id, job.attempts, error)
        return RETRY
    logger.error("%s: the last attempt failed: %s", job.id, error)
    if isinstance(error, OSError) and error.errno in DiskFull.errnos:
        error = DiskFull("The worker's disk is full.")
    is_typed = isinstance(error, EarmarkError)
    _fail(execution, error.code if is_typed else "internal", error.detail if is_typed else INTERNAL)
    return None


def _release_or_retry(execution: JobExecution, error: StoreRefused) -> Retry | None:
    """Release the job, which costs it no attempt, and end this worker if the store refuses it altogether: it would use
    up the attempts of all jobs. Retry where only this job's objects are refused."""
    context, job = execution.context, execution.job
    context.signals.refusal = find_refusal(context.storage)
    if context.signals.refusal is None:
        return _retry(execution, error)
    if not context.jobs.release(job.id, execution.id):
        return None
    logger.error("%s: released, since the store refuses this worker", job.id)
    return RETRY


def _retry_after_pause(execution: JobExecution, error: OSError) -> Retry | None:
    """Retry after a pause that grows with the attempts: workers that share a full disk would use them up at once."""
    retry = _retry(execution, error)
    execution.context.signals.trouble.set()
    if retry is None:
        return None
    try:
        execution.control.wait(TROUBLE_PAUSES[min(execution.job.attempts, len(TROUBLE_PAUSES)) - 1])
    except Cancelled:
        return _stop_or_hand_over(execution)
    return retry
