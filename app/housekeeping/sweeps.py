"""`python -m app housekeeping`: requeue lost jobs, and remove what has expired.

A sweep runs every few seconds in the one process that holds a lock in Redis; further processes stand by. Everything in
it works on a full server too, whose memory it frees. A dead worker is detected `heartbeat_timeout` after the last
heartbeat of its execution (RQ's; the model registry has another), and the next sweep requeues its job. Every process
delivers webhooks, independently of the lock.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock
from rq import Queue
from rq.executions import Execution
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from app import metrics
from app.errors import AudioInUse, EarmarkError, NotFound, RecordUnreadable, StoreUnavailable
from app.housekeeping.health import Health
from app.housekeeping.reconciliation import SlowSweep
from app.housekeeping.webhook_delivery import deliver_in_background
from app.jobs.housekeeping_metrics import HousekeepingMetrics, Rounds
from app.jobs.kinds import kind_of_id, output_folder
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.model_registry.registry import ModelRegistry, choose
from app.records.audio import AudioRepository, store_key
from app.records.orphans import OrphanLedger
from app.redis_client import connect, execute_when_full, server_clock
from app.settings import Settings
from app.storage import Storage
from app.supervisor import stop_on_signals

log = logging.getLogger("earmark.housekeeping")

EXPIRY_INTERVAL = 60.0  # s between removals of what has expired, which is not urgent
RECONCILIATION_INTERVAL = 6 * 3600.0  # s between walks through the store, one page at each sweep
BATCH_SIZE = 200  # items of each kind that one removal handles; if there are more, the next sweep continues
MOVES = 1000  # jobs of one model that a sweep moves to another version; the next one continues
POSTPONE_SECONDS = 300.0  # before another attempt at what could not be removed: an upload in use, an unreadable record
_LOCK_KEY = "earmark:housekeeping"


class Housekeeping:
    """Recovery and expiry of one deployment. `sweep` does everything that is due; each step is idempotent."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings, health: Health | None = None) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._storage = storage
        self._settings = settings
        self._jobs = JobRepository(redis, settings)
        self._audio = AudioRepository(redis, settings)
        self._orphans = OrphanLedger(redis)
        self._registry = ModelRegistry(redis, settings)
        self._health = health or Health()
        self._dead_outputs: list[str] = []  # prefixes of dead executions; the orphan ledger has them too
        self._intermediate_since: dict[tuple[str, str], float] = {}  # first seen, by queue name and job id
        self._next_removal = 0.0
        self._slow_sweep: SlowSweep | None = None  # while it is under way
        self._next_slow_sweep = 0.0

    def sweep(self) -> None:
        """Requeue lost jobs; every `EXPIRY_INTERVAL`, remove what has expired; look for orphans in the store."""
        models = self._jobs.fair_queue.models()
        for model in models:
            for short in (False, True):
                queue = self._jobs.rq_queues.queue(model, short)
                self._attempt(queue.name, partial(self._reap_executions, queue))
                self._attempt(queue.name, partial(self._reap_intermediate, queue))
        for model in models:
            self._attempt(model, partial(self._jobs.fair_queue.repair, model))
            self._attempt(model, partial(self._move_waiting, model))
        for job in self._jobs.find_lost():
            self._attempt(job.id, partial(self._requeue, job))
        # Last, because an unavailable store must not delay the recovery of jobs.
        while self._dead_outputs:
            self._storage.delete_prefix(self._dead_outputs[-1])
            self._dead_outputs.pop()
        if time.monotonic() >= self._next_removal:
            self._next_removal = time.monotonic() + EXPIRY_INTERVAL
            with self._health.attempt("removal"):
                has_more = self.remove_expired()
            if has_more:
                self._next_removal = 0.0
        self._reconcile()

    def remove_expired(self) -> bool:
        """Remove expired stems and uploads, and orphaned objects; return whether there may be more."""
        due = (
            (self._jobs.expired_ids(BATCH_SIZE), self._expire_job, self._jobs.postpone_expiry),
            (self._audio.expired_ids(BATCH_SIZE), self._expire_audio, self._audio.postpone_expiry),
            (self._orphans.due(BATCH_SIZE), self._delete_orphan, self._orphans.postpone),
        )
        for names, remove, postpone in due:
            for name in names:
                if not self._attempt(name, partial(remove, name)):
                    postpone(name, POSTPONE_SECONDS)  # otherwise it would block the head of its list
        self._registry.delete_dead()
        self._jobs.trim()
        self._jobs.quarantine.trim()
        unfinished = self._storage.sweep_unfinished(2 * self._settings.upload_timeout)
        if unfinished:
            log.info("removed %d unfinished files from the store", unfinished)
        return any(len(names) == BATCH_SIZE for names, _, _ in due)

    def _reconcile(self) -> None:
        """Look for orphans in the next page of the store's listing; after a failure, begin again soon."""
        now = time.monotonic()
        if self._slow_sweep is None and now < self._next_slow_sweep:
            return
        slow_sweep = self._slow_sweep or SlowSweep(self._redis, self._storage, self._settings.orphan_retention)
        self._slow_sweep, self._next_slow_sweep = None, now + EXPIRY_INTERVAL
        with self._health.attempt("reconciliation"):
            has_more = slow_sweep.step()
        if has_more:
            self._slow_sweep = slow_sweep
        else:
            self._next_slow_sweep = now + RECONCILIATION_INTERVAL

    # Recovery

    def _reap_executions(self, queue: Queue) -> None:
        """Delete executions without a heartbeat from RQ's registry; `find_lost` then finds their jobs.

        A heartbeat renews the expiry of RQ's key of the execution by Redis's clock; the clock of a worker may be wrong.
        """
        registry = StartedJobRegistry(queue=queue, serializer=JSONSerializer).key
        members: Any = self._redis.zrange(registry, 0, -1)
        for member in members:
            if member.count(b":") != 1:
                log.error("%s: %r is not an execution", queue.name, member)
                self._redis.zrem(registry, member)
                continue
            execution = Execution.from_composite_key(member.decode(), self._redis)
            if not self._redis.exists(execution.key) and self._redis.zrem(registry, execution.composite_key):
                log.warning("%s: no heartbeat of execution %s", queue.name, execution.composite_key)
                self._jobs.discard_entry(execution.job_id)

    def _reap_intermediate(self, queue: Queue) -> None:
        """Delete ids that a worker moved to the intermediate queue without starting them: it died in between."""
        job_ids = queue.intermediate_queue.get_job_ids()
        started = set(StartedJobRegistry(queue=queue, serializer=JSONSerializer).get_job_ids(cleanup=False))
        now = time.monotonic()
        since = {(queue.name, job_id): now for job_id in job_ids if job_id not in started}
        for entry, first_seen in self._intermediate_since.items():
            if entry[0] != queue.name or entry in since:
                since[entry] = first_seen
        for (name, job_id), first_seen in list(since.items()):
            if name == queue.name and now - first_seen > self._settings.lost_after:
                queue.intermediate_queue.remove(job_id)
                self._jobs.discard_entry(job_id)
                del since[name, job_id]
        self._intermediate_since = since

    def _requeue(self, lost: Job) -> None:
        requeued = self._jobs.requeue(lost)
        if requeued is None:
            return
        log.warning("job %s was lost (execution %s), now %s", lost.id, lost.execution, requeued.status)
        if lost.execution is not None:
            # If that execution is alive after all, it cannot publish, and deletes what it stores from now on itself.
            self._dead_outputs.append(JobRepository.output_prefix(lost, lost.execution))

    def _move_waiting(self, model: str) -> None:
        """Give the waiting jobs of a version without workers to the version that new jobs get, if it has some.

        Those whose requests name the version stay, and fail once it is gone. The previous release named queues by the
        model alone: their jobs move once its workers have ended.
        """
        if not self._jobs.fair_queue.waiting_count(model) or self._registry.worker_count(model):
            return
        default = choose(model.partition("@")[0], [found for found in self._registry.available() if found.workers])
        is_gone = self._registry.is_gone(model)
        if default is None and not is_gone:
            return
        moves = 0
        for job_id in self._jobs.fair_queue.waiting_ids(model):
            if default is not None and self._jobs.move(job_id, default.id) is not None:
                log.info("job %s moves from %s to %s", job_id, model, default.id)
                moves += 1
                if moves == MOVES:
                    return
            elif is_gone:
                self._give_up(job_id)

    def _give_up(self, job_id: str) -> None:
        """Fail a job whose model is gone, if it has waited for as long as jobs wait for one."""
        with contextlib.suppress(NotFound, RecordUnreadable):
            job = self._jobs.get(job_id)
            if job.version_named and job.created_at < self._clock.now() - self._settings.model_seconds:
                self._jobs.give_up_model(job_id)
                log.warning("job %s fails: no worker has %s any more", job_id, job.model)

    # Expiry

    def _expire_job(self, job_id: str) -> None:
        with contextlib.suppress(NotFound, RecordUnreadable):
            self._jobs.get(job_id)  # raises `RecordTooNew`: then the output is left to the newer release
        kind = kind_of_id(job_id)
        prefix = None if kind is None else output_folder(kind.name, job_id)
        if prefix is not None:
            self._orphans.add(None, prefix, self._clock.now())
        self._jobs.expire(job_id)
        log.info("job %s: its output has expired", job_id)
        if prefix is not None:
            self._delete(prefix)

    def _expire_audio(self, audio_id: str) -> None:
        try:
            self._audio.delete(audio_id)
        except AudioInUse:
            self._audio.postpone_expiry(audio_id, POSTPONE_SECONDS)
            return
        except NotFound:  # it was deleted meanwhile, or Redis has lost its record
            pass
        self._delete(store_key(audio_id))
        log.info("upload %s has expired", audio_id)

    def _delete_orphan(self, prefix: str) -> None:
        self._delete(prefix)
        log.info("%s: deleted from the store", prefix)

    def _delete(self, prefix: str) -> None:
        self._storage.delete_prefix(prefix)
        self._orphans.remove(None, prefix)

    def _attempt(self, name: str, step: Callable[[], object]) -> bool:
        """Run one step; return whether it succeeded. Its failure must not stop the others."""
        try:
            step()
            return True
        except (RedisError, StoreUnavailable):
            raise  # the other steps would fail too, each after a timeout
        except EarmarkError as error:
            log.error("%s: %s", name, error)
        except Exception:
            log.exception("%s", name)
        return False


class SweepLock(Lock):
    """The lock of housekeeping, which can be acquired although the server is full: sweeps free its memory."""

    def do_acquire(self, token: str) -> bool:
        """Acquire the lock unless another process holds it; `Lock.acquire` calls this."""
        with self.redis.pipeline() as pipe:
            pipe.set(self.name, token, nx=True, px=int((self.timeout or 0) * 1000))
            return bool(execute_when_full(self.redis, pipe)[0])


def run(settings: Settings) -> None:
    """Sweep and deliver webhooks until SIGINT or SIGTERM; outages of Redis and the store are logged and survived."""
    stopping = stop_on_signals()
    redis = connect(settings)
    health = Health()
    registry = metrics.combine(HousekeepingMetrics(redis))
    metrics.serve(settings.housekeeping_metrics_port, settings.metrics_host, registry, health.report)
    # Held between sweeps, so that the process keeps its observations; the lock of a dead process expires.
    lock = SweepLock(redis, _LOCK_KEY, timeout=6 * settings.sweep_seconds, blocking=False, thread_local=False)
    token = secrets.token_hex(16)
    housekeeping: Housekeeping | None = None
    rounds = Rounds(redis)
    log.info("sweeping every %g s", settings.sweep_seconds)
    with deliver_in_background(settings, stopping):
        while not stopping.is_set():
            try:
                with health.attempt("round"):
                    if holds_lock := _acquire(lock, token):
                        housekeeping = housekeeping or Housekeeping(redis, Storage.open(settings), settings, health)
                        housekeeping.sweep()
                if holds_lock and health.is_good:
                    rounds.record()
            except (RedisError, EarmarkError) as error:
                log.error("the sweep failed: %s", error)
            except Exception:  # a defect in one step must not end the process
                log.exception("the sweep failed")
            stopping.wait(settings.sweep_seconds)
    _release(lock)


def _acquire(lock: Lock, token: str) -> bool:
    """Acquire or renew the lock; return whether this process holds it."""
    with contextlib.suppress(LockError):  # expired while Redis was unavailable
        if lock.owned():
            return bool(lock.reacquire())
    return bool(lock.acquire(token=token))


def _release(lock: Lock) -> None:
    with contextlib.suppress(LockError, RedisError):
        lock.release()
