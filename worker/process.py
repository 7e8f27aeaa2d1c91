"""A worker process from its start to its end: the model, the queue, the store, and a sign of life."""

import functools
import logging
import threading
import time

import torch
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

import app.metrics
from app.errors import ModelUnavailable, StoreUnavailable
from app.jobs.lifecycle import JobError
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import queue_name
from app.keys.quotas import Quotas
from app.model_registry import ModelRegistry
from app.redis_client import connect
from app.settings import Settings
from app.storage import Storage
from models.engine import Engine
from models.errors import ModelsError
from models.precision import Precision
from worker import metrics
from worker.context import WorkerContext
from worker.rq_worker import EarmarkWorker, Signals
from worker.scratch import Scratch
from worker.tasks import TASKS

logger = logging.getLogger("earmark.worker")

REDIS_TRIES = 20  # up to 2 s apart: a server that is restarted costs a job nothing


class WorkerUnusable(Exception):
    """The worker cannot begin; the message is for whoever started it."""


class WorkerLost(Exception):
    """The worker ends without having been told to; who started it should start another."""


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
    """Take jobs of a model until told to stop; with `burst`, until none is left. Raises WorkerUnusable, CutOff.

    model: a preset's name or a folder; `hand_over_after`: as in `GpuWorker`; `short`: take short jobs only.
    """
    began = time.monotonic()
    if settings.worker_threads:
        torch.set_num_threads(settings.worker_threads)
    engine = _load(model, device, precision)
    description = engine.describe()
    redis = _patient(connect(settings))
    registry = ModelRegistry(redis, settings)
    context = _context(engine, redis, settings)
    try:
        try:
            worker = _worker(context, description["name"], short, redis, hand_over_after)
            registry.announce(description, worker.name, short)
            context.jobs.fair_queue.fill(description["name"])
        except RedisError as error:
            raise WorkerUnusable(f"the queue's server does not answer: {error}") from error
        _show(engine, settings)
        logger.info("%s is ready after %.1f s, on %s", engine.model_id, time.monotonic() - began, engine.device)
        _take_jobs(worker, _Presence(registry, description, worker.name, short, settings.heartbeat_seconds), burst)
    finally:
        context.scratch.close()


def _take_jobs(worker: EarmarkWorker, presence: "_Presence", burst: bool) -> None:
    presence.start()
    try:
        worker.work(burst=burst, logging_level="WARNING")  # what RQ tells of each job, we tell too
    except RedisError as error:
        raise WorkerLost(f"the queue's server stays away: {error}") from error
    finally:
        presence.stop()
    if not burst and not worker.told_to_stop:  # RQ logs what happened, and returns as if all were well
        raise WorkerLost("it could not go on; the messages above say why")


def _show(engine: Engine, settings: Settings) -> None:
    """Let Prometheus see what this worker does."""
    engine.observe_batch = metrics.batch_size.observe
    device = torch.device(engine.device)
    if device.type == "cuda":
        metrics.watch_gpu(torch.cuda.get_device_properties(device).uuid)
    try:
        app.metrics.serve(settings.worker_metrics_port, settings.metrics_host)
    except OSError as error:
        raise WorkerUnusable(f"port {settings.worker_metrics_port} for metrics: {error.strerror}") from error


def _load(model: str, device: str, precision: Precision) -> Engine:
    try:
        return Engine.load(model, device=device, precision=precision)
    except (ModelsError, OSError, ValueError) as error:
        raise WorkerUnusable(f"the model {model} does not load: {error}") from error


def _patient(redis: Redis) -> Redis:
    redis.set_retry(
        Retry(ExponentialBackoff(cap=2.0, base=0.05), REDIS_TRIES, (RedisConnectionError, RedisTimeoutError))
    )
    return redis


def _context(engine: Engine, redis: Redis, settings: Settings) -> WorkerContext:
    try:
        return WorkerContext(
            engine=engine,
            jobs=JobRepository(redis, settings),
            quotas=Quotas(redis),
            storage=Storage.open(settings),
            scratch=Scratch(settings.home / "scratch"),
            signals=Signals(),
            settings=settings,
        )
    except StoreUnavailable as error:
        raise WorkerUnusable(error.detail) from error
    except OSError as error:
        raise WorkerUnusable(f"no temporary folder: {error}") from error


def _worker(context: WorkerContext, model: str, short: bool, redis: Redis, hand_over_after: float) -> EarmarkWorker:
    overrun = JobError(code="timed_out", detail="Did not stop at its timeout; its worker was ended.")
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


class _Presence(threading.Thread):
    """Tells the registry that the worker lives, whether it works or waits, and what it can do should the server
    have lost that."""

    def __init__(self, registry: ModelRegistry, description: dict, worker: str, short: bool, interval: float) -> None:
        super().__init__(name="earmark-presence", daemon=True)
        self._registry = registry
        self._description = description
        self._model: str = description["name"]
        self._worker = worker
        self._short = short
        self._interval = interval
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self._beat()
            except RedisError as error:
                logger.warning("the queue's server does not answer: %s", error)

    def _beat(self) -> None:
        try:
            self._registry.model(self._model)
        except ModelUnavailable:
            logger.warning("the queue's server has lost what it held; announcing %s again", self._model)
            self._registry.announce(self._description, self._worker, self._short)
        else:
            self._registry.heartbeat(self._model, self._worker, self._short)

    def stop(self) -> None:
        self._over.set()
        self.join()
        try:
            self._registry.leave(self._model, self._worker)
        except RedisError as error:
            logger.warning("left without saying so: %s", error)
