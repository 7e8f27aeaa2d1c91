"""A worker process from start to end: it loads the model, connects to queue and store, and sends its heartbeat."""

import functools
import logging
import time
from contextlib import ExitStack, suppress
from typing import TypeVar

import torch
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq.exceptions import StopRequested

import app.metrics
from app.errors import StoreRefused, StoreUnavailable
from app.jobs.lifecycle import JobError
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import queue_name
from app.keys.quotas import Quotas
from app.model_registry.registry import ModelRegistry
from app.redis_client import connect
from app.settings import Settings
from app.storage import Storage
from models.compute.precision import Precision
from models.engine import Engine
from models.errors import ModelsError
from worker import metrics
from worker.context import WorkerContext
from worker.redis_retries import REFUSALS, wait_for_redis
from worker.registry_heartbeat import RegistryHeartbeat
from worker.rq_worker import EarmarkWorker, Signals
from worker.scratch import Scratch
from worker.shared_threads import SharedThreads
from worker.short_jobs import ShortJobs
from worker.store_access import open_store
from worker.tasks import TASKS
from worker.thread_worker import ThreadWorker

logger = logging.getLogger("earmark.worker")

RqWorker = TypeVar("RqWorker", bound=EarmarkWorker)

REDIS_RETRIES = 20  # up to 2 s apart, so that a restart of the server fails no job


class WorkerUnusable(Exception):
    """The worker cannot run jobs; the message says why."""


class WorkerLost(Exception):
    """The worker ends without a signal to stop, and should be restarted."""


def work(
    settings: Settings,
    model: str,
    device: str,
    precision: Precision,
    *,
    burst: bool,
    hand_over_after: float,
    short: bool = False,
    one_job: bool = False,
) -> None:
    """Run jobs of a model until a signal to stop. Raises WorkerUnusable, WorkerLost.

    model: a preset's name or a folder. burst: return when the queue is empty. hand_over_after: as in `EarmarkWorker`.
    short: take short jobs only. one_job: run no short job beside another one, as on a GPU, with one thread and in a
    burst.
    """
    start = time.monotonic()
    storage = _open_store(settings)
    engine = _load_engine(model, device, precision)
    if not burst:  # there the first job may be the only one
        engine.warm_up()
    redis = _connect_with_retries(settings)
    registry = ModelRegistry(redis, settings)
    with ExitStack() as stack:
        context = _make_context(engine, redis, storage, settings)
        stack.callback(context.scratch.close)
        _serve_metrics(engine, settings)
        try:
            worker = wait_for_redis(_make_rq_worker, EarmarkWorker, context, short, hand_over_after)
            worker.expect_signals()  # before it is announced: who sees it may stop it
            heartbeat = RegistryHeartbeat(registry, engine, worker.name, short, settings.heartbeat_seconds)
            wait_for_redis(heartbeat.announce, is_stopping=worker.is_told_to_stop)
            wait_for_redis(context.jobs.fair_queue.fill, engine.model_id, is_stopping=worker.is_told_to_stop)
            short_jobs = None
            if not one_job and not burst and engine.device == "cpu" and context.threads.total > 1:
                beside = _make_context(engine, _connect_with_retries(settings), storage, settings, context.threads)
                stack.callback(beside.scratch.close)
                is_stopping = worker.is_told_to_stop
                short_jobs = wait_for_redis(_make_short_jobs, beside, hand_over_after, is_stopping=is_stopping)
                worker.on_stop = short_jobs.worker.stop
        except StopRequested:
            return
        except REFUSALS as error:
            raise _refused(error) from error
        logger.info("%s is ready after %.1f s, on %s", engine.model_id, time.monotonic() - start, engine.device)
        _take_jobs(worker, heartbeat, short_jobs, burst)


def _take_jobs(worker: EarmarkWorker, heartbeat: RegistryHeartbeat, short_jobs: ShortJobs | None, burst: bool) -> None:
    heartbeat.start()
    if short_jobs is not None:
        short_jobs.start()
    try:
        with suppress(StopRequested):  # before its loop
            worker.work(burst=burst, logging_level="WARNING")  # `worker.job_run` logs each job
    finally:
        if short_jobs is not None:
            short_jobs.worker.stop()  # where no signal has told it to
        heartbeat.stop()
        if short_jobs is not None:
            short_jobs.join()
    is_lost = short_jobs is not None and short_jobs.is_lost
    refusal = worker.refusal or (short_jobs.worker.refusal if short_jobs is not None else None)
    if refusal is not None:
        raise _refused(refusal)
    if not burst and (is_lost or not worker.is_stopping):  # RQ logs an error and returns normally
        raise WorkerLost("RQ has stopped; its messages above say why")


def _refused(error: RedisError | StoreRefused) -> WorkerUnusable:
    if isinstance(error, StoreRefused):
        return WorkerUnusable(f"{error.detail} {error.advice}")
    return WorkerUnusable(f"Redis refuses the password or the account in EARMARK_REDIS_URL: {error}")


def _serve_metrics(engine: Engine, settings: Settings) -> None:
    """Serve this worker's metrics to Prometheus."""
    engine.observe_batches(metrics.batch_size.observe)
    device = torch.device(engine.device)
    if device.type == "cuda":
        metrics.watch_gpu(torch.cuda.get_device_properties(device).uuid)
    try:
        app.metrics.serve(settings.worker_metrics_port, settings.metrics_host)
    except OSError as error:
        raise WorkerUnusable(f"port {settings.worker_metrics_port} for metrics: {error.strerror}") from error


def _open_store(settings: Settings) -> Storage:
    try:
        return open_store(settings)
    except StoreRefused as error:
        raise _refused(error) from error
    except StoreUnavailable as error:
        raise WorkerUnusable(error.detail) from error


def _load_engine(model: str, device: str, precision: Precision) -> Engine:
    try:
        return Engine.load(model, device=device, precision=precision)
    except (ModelsError, OSError, ValueError) as error:
        raise WorkerUnusable(f"the model {model} does not load: {error}") from error


def _connect_with_retries(settings: Settings) -> Redis:
    redis = connect(settings)
    redis.set_retry(
        Retry(ExponentialBackoff(cap=2.0, base=0.05), REDIS_RETRIES, (RedisConnectionError, RedisTimeoutError))
    )
    return redis


def _make_context(
    engine: Engine, redis: Redis, storage: Storage, settings: Settings, threads: SharedThreads | None = None
) -> WorkerContext:
    try:
        return WorkerContext(
            engine=engine,
            jobs=JobRepository(redis, settings),
            quotas=Quotas(redis, settings),
            storage=storage,
            scratch=Scratch(settings.home / "scratch"),
            signals=Signals(),
            settings=settings,
            threads=threads or SharedThreads(),
        )
    except OSError as error:
        raise WorkerUnusable(f"no scratch folder: {error}") from error


def _make_rq_worker(kind: type[RqWorker], context: WorkerContext, short: bool, hand_over_after: float) -> RqWorker:
    model = context.engine.model_id
    overrun = JobError(
        code="timed_out", detail="The job did not stop at its timeout, and its worker process was ended."
    )
    return kind(
        queue_name(model, short),
        connection=context.jobs.redis,
        tasks={name: functools.partial(task, context) for name, task in TASKS.items()},
        signals=context.signals,
        heartbeat_seconds=context.settings.heartbeat_seconds,
        heartbeat_timeout=context.settings.heartbeat_timeout,
        hand_over_after=hand_over_after,
        on_overrun=lambda job_id, execution: context.jobs.fail(job_id, execution, overrun),
        on_idle=lambda: context.jobs.fair_queue.fill(model),
    )


def _make_short_jobs(context: WorkerContext, hand_over_after: float) -> ShortJobs:
    """Return the thread for short jobs. context: its own, except for the model and the threads of computation."""
    worker = _make_rq_worker(ThreadWorker, context, True, hand_over_after)
    registry = ModelRegistry(context.jobs.redis, context.settings)
    interval = context.settings.heartbeat_seconds
    return ShortJobs(worker, RegistryHeartbeat(registry, context.engine, worker.name, True, interval))
