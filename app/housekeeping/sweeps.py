"""`python -m app housekeeping`: gives lost work to other workers, and removes what has expired.

Rounds every few seconds, one housekeeper at a time under a lock in Redis; a second one stands by. A worker that died
is missed `heartbeat_timeout` after its last beat; a round later its job waits again. Webhooks are delivered beside the
rounds, by every housekeeper.
"""

import contextlib
import logging
import secrets
import signal
import threading
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

from app.errors import AudioInUse, EarmarkError, NotFound, StoreUnavailable
from app.housekeeping.webhook_delivery import deliver_in_background
from app.jobs.kinds import output_folder
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.model_registry import ModelRegistry
from app.records.audio import AudioRepository, store_key
from app.records.orphans import OrphanLedger
from app.redis_client import connect
from app.settings import Settings
from app.storage import Storage

log = logging.getLogger("earmark.housekeeping")

TIDY_SECONDS = 60.0  # between looks for what has expired: nobody waits for that
AT_ONCE = 200  # things of a kind that one look removes; where there are more, the next round goes on
POSTPONE_SECONDS = 300.0  # until what could not be removed is looked at again: an upload in use, a record of tomorrow's
_LOCK = "earmark:housekeeping"


class Housekeeping:
    """One deployment's housekeeper. `round` does everything that is due; any step may be repeated."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings) -> None:
        self._redis = redis
        self._storage = storage
        self._settings = settings
        self._jobs = JobRepository(redis, settings)
        self._audio = AudioRepository(redis, settings)
        self._leftovers = OrphanLedger(redis)
        self._registry = ModelRegistry(redis, settings)
        self._abandoned: list[str] = []  # prefixes of executions that died; the ledger has them too
        self._taken_since: dict[tuple[str, str], float] = {}
        self._tidy_next = 0.0

    def round(self) -> None:
        """Bring lost work back; now and then, remove what has expired."""
        for model in self._jobs.fair_queue.models():
            for short in (False, True):
                queue = self._jobs.rq_queues.queue(model, short)
                self._reap_executions(queue)
                self._reap_intermediate(queue)
            self._jobs.fair_queue.fill(model)
        for job in self._jobs.find_lost():
            self._attempt(job.id, partial(self._requeue, job))
        # Last, and not at all while the store is away: lost work must not wait for a store that does not answer.
        while self._abandoned:
            self._storage.delete_prefix(self._abandoned[-1])
            self._abandoned.pop()
        if time.monotonic() >= self._tidy_next:
            self._tidy_next = time.monotonic() + TIDY_SECONDS
            if self.remove_expired():
                self._tidy_next = 0.0

    def remove_expired(self) -> bool:
        """Remove expired stems and uploads, and what dead processes left in the store; whether there may be more."""
        due = (
            (self._jobs.expired_ids(AT_ONCE), self._expire_job, self._jobs.postpone_expiry),
            (self._audio.expired_ids(AT_ONCE), self._expire_audio, self._audio.postpone_expiry),
            (self._leftovers.due(AT_ONCE), self._delete, self._leftovers.postpone),
        )
        for names, remove, postpone in due:
            for name in names:
                if not self._attempt(name, partial(remove, name)):
                    postpone(name, POSTPONE_SECONDS)  # at the head of its list it would keep others from their turn
        for model in self._registry.models():
            self._registry.delete_dead(model.name)
        self._jobs.trim()
        swept = self._storage.sweep_unfinished(2 * self._settings.upload_timeout)
        if swept:
            log.info("removed %d unfinished files from the store", swept)
        return any(len(names) == AT_ONCE for names, _, _ in due)

    # Lost work

    def _reap_executions(self, queue: Queue) -> None:
        """Strike out executions whose worker no longer beats; `lost` then finds their jobs.

        A beat keeps RQ's key of the execution for a while by Redis's clock: those of workers may be wrong.
        """
        registry = StartedJobRegistry(queue=queue, serializer=JSONSerializer).key
        begun: Any = self._redis.zrange(registry, 0, -1)
        executions = [Execution.from_composite_key(member.decode(), self._redis) for member in begun]
        for execution in executions:
            if not self._redis.exists(execution.key) and self._redis.zrem(registry, execution.composite_key):
                log.warning("%s: no heartbeat of execution %s", queue.name, execution.composite_key)
                self._jobs.discard_entry(execution.job_id)

    def _reap_intermediate(self, queue: Queue) -> None:
        """Strike out ids that a worker took off the queue and never began: it died between the two."""
        taken = queue.intermediate_queue.get_job_ids()
        started = set(StartedJobRegistry(queue=queue, serializer=JSONSerializer).get_job_ids(cleanup=False))
        now = time.monotonic()
        since = {(queue.name, job_id): now for job_id in taken if job_id not in started}
        for place, first in self._taken_since.items():
            if place[0] != queue.name or place in since:
                since[place] = first
        for (name, job_id), first in list(since.items()):
            if name == queue.name and now - first > self._settings.lost_after:
                queue.intermediate_queue.remove(job_id)
                self._jobs.discard_entry(job_id)
                del since[name, job_id]
        self._taken_since = since

    def _requeue(self, lost: Job) -> None:
        after = self._jobs.requeue(lost)
        if after is None:
            return
        log.warning("job %s was lost (execution %s): %s", lost.id, lost.execution, after.status)
        if lost.execution is not None:
            # Should that execution live after all, it cannot publish, and deletes what it stores from now on itself.
            self._abandoned.append(JobRepository.output_prefix(lost, lost.execution))

    # What has expired

    def _expire_job(self, job_id: str) -> None:
        prefix = self._prefix(job_id)
        if prefix is not None:
            self._leftovers.add(None, prefix, time.time())
        self._jobs.expire(job_id)
        if prefix is not None:
            self._delete(prefix)

    def _prefix(self, job_id: str) -> str | None:
        try:
            job = self._jobs.get(job_id)
        except NotFound:
            return None
        return output_folder(job.kind, job.id)

    def _expire_audio(self, audio_id: str) -> None:
        try:
            self._audio.delete(audio_id)
        except (AudioInUse, NotFound):
            self._audio.postpone_expiry(audio_id, POSTPONE_SECONDS)
            return
        self._delete(store_key(audio_id))

    def _delete(self, prefix: str) -> None:
        self._storage.delete_prefix(prefix)
        self._leftovers.remove(None, prefix)

    def _attempt(self, name: str, step: Callable[[], object]) -> bool:
        """One thing that fails must not keep the rest from being done; whether it did not."""
        try:
            step()
            return True
        except (RedisError, StoreUnavailable):
            raise  # the rest would fail too, each after a long wait
        except EarmarkError as error:
            log.error("%s: %s", name, error)
        except Exception:
            log.exception("%s", name)
        return False


def run(settings: Settings) -> None:
    """Keeps house until SIGINT or SIGTERM; outlives Redis and the store when they are away."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    redis = connect(settings)
    # Held from round to round, so that who keeps house keeps what it has seen; a dead one's lock runs out.
    lock = redis.lock(_LOCK, timeout=6 * settings.sweep_seconds, blocking=False, thread_local=False)
    token = secrets.token_hex(16)
    housekeeping: Housekeeping | None = None
    log.info("keeping house every %g s", settings.sweep_seconds)
    with deliver_in_background(settings, stopping):
        while not stopping.is_set():
            try:
                if _holds(lock, token):
                    housekeeping = housekeeping or Housekeeping(redis, Storage.open(settings), settings)
                    housekeeping.round()
            except (RedisError, EarmarkError) as error:
                log.error("a round failed: %s", error)
            except Exception:  # a defect of one step must not end the others' rounds
                log.exception("a round failed")
            stopping.wait(settings.sweep_seconds)
    _release(lock)


def _holds(lock: Lock, token: str) -> bool:
    with contextlib.suppress(LockError):  # not ours any more: it ran out while Redis was away
        if lock.owned():
            return bool(lock.reacquire())
    return bool(lock.acquire(token=token))


def _release(lock: Lock) -> None:
    with contextlib.suppress(LockError, RedisError):
        lock.release()
