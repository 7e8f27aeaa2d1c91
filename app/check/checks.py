"""The checks of `python -m app check`: each tries one thing that a deployment needs, for real."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from app.budgets.redis_memory import MemoryReading
from app.errors import EarmarkError, NotFound, StoreRefused, StoreUnavailable
from app.jobs.housekeeping_metrics import Rounds
from app.keys.exposure import ExposedWithoutKeys, check_exposure
from app.keys.repository import KeyRepository
from app.model_registry.registry import ModelRegistry
from app.redis_client import check_writes, connect
from app.settings import Settings
from app.storage import Storage

State = Literal["ok", "warning", "fault"]
CLOCK_WARNING = 2.0  # s between the clocks of this machine and of Redis
CLOCK_FAULT = 300.0  # S3 refuses signatures that are 15 minutes old, and webhooks theirs after 5
LATE_ROUND = 120.0  # s after which the last good round of housekeeping is too long ago: one takes seconds


@dataclass(frozen=True)
class Finding:
    """The outcome of a check: what was found and, unless it is ok, what to do."""

    name: str
    state: State
    found: str
    advice: str = ""


def run_all(settings: Settings) -> Iterator[Finding]:
    """Run all checks one after the other; those that need Redis are left out where it does not answer."""
    yield _authentication(settings)
    yield _store(settings)
    with connect(settings) as redis:
        queue = _queue(redis)
        yield queue
        if queue.state == "fault":
            return
        for check in (_memory_policy, _memory, _persistence, _clock, _keys, _housekeeping, _workers):
            yield _attempt(check, redis, settings)


def _attempt(check: Callable[[Redis, Settings], Finding], redis: Redis, settings: Settings) -> Finding:
    try:
        return check(redis, settings)
    except RedisError as error:
        name = check.__name__.strip("_").replace("_", " ")
        return Finding(name, "fault", f"Redis refuses: {error}", "give the account of EARMARK_REDIS_URL its rights")


def _authentication(settings: Settings) -> Finding:
    try:
        check_exposure(settings)
    except ExposedWithoutKeys as error:
        return Finding("authentication", "fault", f"off, on {settings.host}", str(error))
    return Finding("authentication", "ok", settings.auth)


def _store(settings: Settings) -> Finding:
    """Write, read and delete an object."""
    key, content = f"readiness/{secrets.token_hex(8)}", secrets.token_bytes(64)
    advice = "compare EARMARK_STORE, EARMARK_STORE_ENDPOINT and both keys with the store; the log above has its answer"
    step = "open"
    try:
        storage = Storage.open(settings)
        step = "list"
        storage.check(writes=False)
        step = "write"
        storage.put(key, content)
        step = "read"
        is_same = storage.get(key) == content
        step = "delete"
        storage.delete(key)
        try:
            storage.size(key)
            return Finding("store", "fault", "it keeps what was deleted", advice)
        except NotFound:
            pass
    except StoreRefused as error:
        return Finding("store", "fault", f"{step}: {error.detail}", error.advice)
    except (StoreUnavailable, NotFound) as error:
        return Finding("store", "fault", f"{step}: {error.detail}", advice)
    if not is_same:
        return Finding("store", "fault", "it returns other bytes than were written", advice)
    return Finding("store", "ok", f"writes, reads and deletes in {settings.store_location}")


def _queue(redis: Redis) -> Finding:
    try:
        check_writes(redis)
        server: Any = redis.info("server")
        name = server.get("server_name", "redis").capitalize()
        return Finding("queue", "ok", f"{name} {server.get('valkey_version') or server['redis_version']} takes writes")
    except AuthenticationError as error:
        advice = "correct the password in EARMARK_REDIS_URL, redis://:PASSWORD@HOST:6379/0"
        return Finding("queue", "fault", str(error), advice)
    except RedisError as error:
        advice = "start the server, or correct EARMARK_REDIS_URL: rediss:// where it speaks TLS, redis:// where not"
        return Finding("queue", "fault", str(error), advice)


def _memory_policy(redis: Redis, _: Settings) -> Finding:
    memory: Any = redis.info("memory")
    policy, limit = memory["maxmemory_policy"], int(memory["maxmemory"])
    if limit and policy != "noeviction":
        advice = "set maxmemory-policy noeviction: any other drops jobs, uploads and keys when memory is full"
        return Finding("memory policy", "fault", policy, advice)
    return Finding("memory policy", "ok", policy)


def _memory(redis: Redis, settings: Settings) -> Finding:
    memory: Any = redis.info("memory")
    reading = MemoryReading.parse(memory)
    if not reading.limit:
        advice = "set maxmemory below the memory of its machine, or its records grow until it is killed"
        return Finding("memory", "warning", "no maxmemory", advice)
    share = reading.used / reading.limit
    found = f"{share:.0%} of {reading.limit / 2**20:.0f} MiB used"
    if share >= settings.redis_share:
        return Finding("memory", "fault", found, "uploads and jobs are refused: raise maxmemory, or delete jobs")
    return Finding("memory", "ok", found)


def _persistence(redis: Redis, _: Settings) -> Finding:
    persistence: Any = redis.info("persistence")
    if not int(persistence["aof_enabled"]):
        advice = "set appendonly yes: a restart loses jobs, uploads and keys (keys export keeps the keys)"
        return Finding("persistence", "warning", "no append-only file", advice)
    if persistence["aof_last_write_status"] != "ok":
        return Finding("persistence", "fault", "the append-only file cannot be written", "make room on its disk")
    return Finding("persistence", "ok", "append-only file")


def _clock(redis: Redis, _: Settings) -> Finding:
    before = time.time()
    seconds, microseconds = redis.time()
    distance = abs(seconds + microseconds / 1e6 - (before + time.time()) / 2)
    found = f"{distance:.1f} s from that of Redis"
    if distance < CLOCK_WARNING:
        return Finding("clock", "ok", found)
    return Finding("clock", "warning" if distance < CLOCK_FAULT else "fault", found, "let NTP set both clocks")


def _keys(redis: Redis, settings: Settings) -> Finding:
    if settings.auth == "off":
        return Finding("keys", "ok", "not needed")
    repository = KeyRepository(redis)
    count, unreadable = len(repository.list()), repository.unreadable_ids()
    if unreadable:
        return Finding("keys", "fault", f"damaged: {', '.join(unreadable)}", "revoke them, or import an export")
    if not count:
        return Finding("keys", "fault", "none", "python -m app keys create NAME, or keys import an export")
    return Finding("keys", "ok", str(count))


def _housekeeping(redis: Redis, _: Settings) -> Finding:
    last = Rounds(redis).last()
    advice = "start python -m app housekeeping; its log and /livez say why rounds fail"
    if last is None:
        return Finding("housekeeping", "warning", "no good round yet", advice)
    seconds, _microseconds = redis.time()
    age = max(0.0, seconds - last)
    state: State = "ok" if age < LATE_ROUND else "warning"
    return Finding("housekeeping", state, f"last good round {age:.0f} s ago", "" if state == "ok" else advice)


def _workers(redis: Redis, settings: Settings) -> Finding:
    try:
        workers = ModelRegistry(redis, settings).workers_by_name()
    except EarmarkError as error:
        return Finding("workers", "fault", error.detail, "compare EARMARK_MODEL_DESCRIPTIONS with its folder")
    found = ", ".join(f"{model}: {count}" for model, count in sorted(workers.items())) or "none"
    if not workers.get(settings.model):
        advice = f"start python -m worker for {settings.model}, the default model, unless it scales from zero"
        return Finding("workers", "warning", found, advice)
    return Finding("workers", "ok", found)
