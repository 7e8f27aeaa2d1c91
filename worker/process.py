"""A worker process from start to end: it loads the model, connects to queue and store, and sends its heartbeat."""

import functools
import logging
import threading
import time
from contextlib import suppress

import torch
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq.exceptions import StopRequested

import app.metrics
from app.errors import StoreUnavailable
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
from worker.rq_worker import REFUSALS, EarmarkWorker, Signals, wait_for_redis
from worker.scratch import Scratch
from worker.tasks import TASKS

logger = logging.getLogger("earmark.worker")

REDIS_RETRIES = 20  # up to 2 s apart, so that a restart of the server fails no job


class WorkerUnusable(Exception):
    """The worker cannot start; the message says why."""


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
) -> None:
    """Run jobs of a model until a signal to stop. Raises WorkerUnusable, WorkerLost.

    model: a preset's name or a folder. burst: return when the queue is empty. hand_over_after: as in `EarmarkWorker`.
    short: take short jobs only.
    """
    start = time.monotonic()
    engine = _load_engine(model, device, precision)
    description = engine.describe()
    redis = _connect_with_retries(settings)
    registry = ModelRegistry(redis, settings)
    context = _make_context(engine, redis, settings)
    try:
        _serve_metrics(engine, settings)
        try:
            worker = wait_for_redis(_make_rq_worker, context, engine.model_id, short, redis, hand_over_after)
            worker.expect_signals()  # before it is announced: who sees it may stop it
            wait_for_redis(registry.announce, description, worker.name, short, is_stopping=worker.is_told_to_stop)
            wait_for_redis(context.jobs.fair_queue.fill, engine.model_id, is_stopping=worker.is_told_to_stop)
        except StopRequested:
            return
        except REFUSALS as error:
            raise _refused(error) from error
        logger.info("%s is ready after %.1f s, on %s", engine.model_id, time.monotonic() - start, engine.device)
        heartbeat = _WorkerHeartbeat(registry, engine, worker.name, short, settings.heartbeat_seconds)
        _take_jobs(worker, heartbeat, burst)
    finally:
        context.scratch.close()


def _take_jobs(worker: EarmarkWorker, heartbeat: "_WorkerHeartbeat", burst: bool) -> None:
    heartbeat.start()
    try:
        with suppress(StopRequested):  # before its loop
            worker.work(burst=burst, logging_level="WARNING")  # `worker.job_run` logs each job
    finally:
        heartbeat.stop()
    if worker.refusal is not None:
        raise _refused(worker.refusal)
    if not burst and not worker.is_stopping:  # RQ logs an error and returns normally
        raise WorkerLost("RQ has stopped; its messages above say why")


def _refused(error: RedisError) -> WorkerUnusable:
    return WorkerUnusable(f"Redis refuses the password or the account in EARMARK_REDIS_URL: {error}")


def _serve_metrics(engine: Engine, settings: Settings) -> None:
    """Serve this worker's metrics to Prometheus."""
    engine.observe_batch = metrics.batch_size.observe
    device = torch.device(engine.device)
    if device.type == "cuda":
        metrics.watch_gpu(torch.cuda.get_device_properties(device).uuid)
    try:
        app.metrics.serve(settings.worker_metrics_port, settings.metrics_host)
    except OSError as error:
        raise WorkerUnusable(f"port {settings.worker_metrics_port} for metrics: {error.strerror}") from error


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


def _make_context(engine: Engine, redis: Redis, settings: Settings) -> WorkerContext:
    try:
        return WorkerContext(
            engine=engine,
            jobs=JobRepository(redis, settings),
            quotas=Quotas(redis, settings),
            storage=Storage.open(settings),
            scratch=Scratch(settings.home / "scratch"),
            signals=Signals(),
            settings=settings,
        )
    except StoreUnavailable as error:
        raise WorkerUnusable(error.detail) from error
    except OSError as error:
        raise WorkerUnusable(f"no scratch folder: {error}") from error


def _make_rq_worker(
    context: WorkerContext, model: str, short: bool, redis: Redis, hand_over_after: float
) -> EarmarkWorker:
    overrun = JobError(
        code="timed_out", detail="The job did not stop at its timeout, and its worker process was ended."
    )
    return EarmarkWorker(
        queue_name(model, short),
        connection=redis,
        tasks={name: functools.partial(task, context) for name, task in TASKS.items()},
        signals=context.signals,
        heartbeat_seconds=context.settings.heartbeat_seconds,
        heartbeat_timeout=context.settings.heartbeat_timeout,
        hand_over_after=hand_over_after,
        on_overrun=lambda job_id, execution: context.jobs.fail(job_id, execution, overrun),
        on_idle=lambda: context.jobs.fair_queue.fill(model),
    )


class _WorkerHeartbeat(threading.Thread):
    """Sends the worker's heartbeat to the model registry, and announces the model again if the server has lost it."""

    def __init__(self, registry: ModelRegistry, engine: Engine, worker: str, short: bool, interval: float) -> None:
        super().__init__(name="earmark-worker-heartbeat", daemon=True)
        self._registry = registry
        self._description = engine.describe()
        self._model = engine.model_id
        self._worker = worker
        self._short = short
        self._interval = interval
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self._beat()
            except RedisError as error:
                logger.warning("Redis does not answer: %s", error)

    def _beat(self) -> None:
        if self._registry.is_announced(self._model):
            self._registry.heartbeat(self._model, self._worker, self._short)
        else:
            logger.warning("Redis has lost its content; announcing %s again", self._model)
            self._registry.announce(self._description, self._worker, self._short)

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        try:
            self._registry.leave(self._model, self._worker)
        except RedisError as error:
            logger.warning("could not sign off at the model registry: %s", error)
