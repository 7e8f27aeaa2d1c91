"""Interleavings of clients, workers and housekeeping, which may die anywhere: each job finishes once, without a trace.

Workers here are RQ's own steps, one at a time: take, start, claim, work, finish, and RQ's cleanup. Each may be the last
of its process, and one that was believed dead may go on. Two housekeeping processes run at any time, on state that may
have changed when they act on it. The server drops its scripts at times.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as Entry
from rq.serializers import JSONSerializer

from app.errors import AlreadyFinished, NotFound
from app.housekeeping.sweeps import Housekeeping
from app.jobs.events import read_all
from app.jobs.lifecycle import Job, JobError
from app.jobs.repository import JobRepository
from app.model_registry.registry import workers_key
from app.records.audio import AudioRepository, users_key
from app.settings import Settings
from app.storage import Storage
from tests.app.records import new_audio, new_job

EXAMPLES = 300 if os.environ.get("EARMARK_SOAK") else 15
ATTEMPTS = 3
NUMBERS = st.integers(0, 3)
EXCERPT_BYTES = 1000  # that each job publishes


@dataclass(eq=False)
class Hold:
    """A job that a worker has, and how far its work is."""

    job_id: str
    short: bool
    entry: Entry | None = None
    execution: Execution | None = None
    claimed: bool = False
    retry: bool = False  # the task asks RQ for another attempt
    finished: bool = False


class Interleavings(RuleBasedStateMachine):
    """A deployment whose processes run step by step."""

    redis: Redis
    folder: Path

    @initialize(any_workers=st.integers(0, 2), short_workers=st.integers(0, 1), count=st.integers(1, 2))
    def set_up(self, any_workers: int, short_workers: int, count: int) -> None:
        self.redis.flushall()
        port = self.redis.connection_pool.connection_kwargs["port"]
        chosen: dict[str, Any] = {"lost_after": 0.0, "job_attempts": ATTEMPTS, "heartbeat_timeout": 600}
        self.settings = Settings(home=self.folder, redis_url=f"redis://127.0.0.1:{port}/0", **chosen)
        self.jobs = JobRepository(self.redis, self.settings)
        storage = Storage.open(self.settings)
        self.housekeepers = [Housekeeping(self.redis, storage, self.settings) for _ in range(2)]
        for number in range(any_workers + short_workers):
            self.redis.zadd(workers_key("base"), {f"w{number}": time.time()})
            if number < short_workers:
                self.redis.zadd(workers_key("base", short=True), {f"w{number}": time.time()})
        self.published: dict[str, dict[str, Any]] = {}  # results by job
        self.deleted: set[str] = set()
        self.created: list[Job] = []
        self.holds: list[Hold] = []  # of living workers
        for _ in range(count):
            self.is_created(1.0, "")

    @precondition(lambda self: len(self.created) < 4)
    @rule(seconds=st.sampled_from([1.0, 5000.0, None]), owner=st.sampled_from(["", "key_a"]))
    def is_created(self, seconds: float | None, owner: str) -> None:
        audio = new_audio()
        AudioRepository(self.redis, self.settings).create(audio)
        job = new_job(audio.id).model_copy(update={"audio_seconds": seconds, "owner": owner})
        self.created.append(self.jobs.create(job).job)
        self.jobs.create(job)  # the call is repeated: its reply was lost

    @rule(number=NUMBERS, delete=st.sampled_from([False, False, True]))
    def is_canceled_or_deleted(self, number: int, delete: bool) -> None:
        job_id = self.created[number % len(self.created)].id
        with suppress(AlreadyFinished, NotFound):
            if delete:
                self.jobs.delete(job_id)
                self.deleted.add(job_id)
            else:
                self.jobs.cancel(job_id)

    # A worker, step by step

    @rule()
    def is_taken(self) -> None:
        for short in (False, True):
            queue = self.jobs.rq_queues.queue("base", short)
            taken: Any = self.redis.lmove(queue.key, queue.intermediate_queue_key)
            if taken is not None:
                self.holds.append(Hold(taken.decode(), short))
                return

    @precondition(lambda self: self.holds)
    @rule(number=NUMBERS, steps=st.integers(1, 4), how=st.sampled_from(["publish", "fail", "stop", "release", "retry"]))
    def goes_on(self, number: int, steps: int, how: str) -> None:
        hold = self.holds[number % len(self.holds)]
        for _ in range(steps):
            if hold in self.holds:
                self._step(hold, how)

    def _step(self, hold: Hold, how: str) -> None:
        if hold.execution is None:
            self._start(hold)
        elif not hold.claimed:
            hold.claimed = True
            hold.finished = self.jobs.claim(hold.job_id, hold.execution.id) is None
        elif not hold.finished:
            self.jobs.report_progress(hold.job_id, hold.execution.id, 0.5, "separating")
            self._finish(hold, hold.execution.id, how)
        else:
            self._clean_up(hold)

    @precondition(lambda self: self.holds)
    @rule(number=NUMBERS)
    def dies(self, number: int) -> None:
        hold = self.holds.pop(number % len(self.holds))
        if hold.execution is not None:
            self.redis.delete(hold.execution.key)

    def _finish(self, hold: Hold, execution: str, how: str) -> None:
        hold.finished, job_id = True, hold.job_id
        if how == "publish":
            is_owner = not self.jobs.should_stop(job_id, execution) or self._is_asked_to_stop(job_id, execution)
            result = {"by": execution}
            assert self.jobs.publish(job_id, execution, [], result, excerpt_bytes=EXCERPT_BYTES) == is_owner
            if is_owner:
                self.published[job_id] = result
                repeated = self.jobs.publish(job_id, execution, [], result, excerpt_bytes=EXCERPT_BYTES)
                assert repeated, "a repeated call"
        elif how == "fail":
            self.jobs.fail(job_id, execution, JobError(code="internal", detail="."))
        elif how == "stop":
            self.jobs.confirm_cancel(job_id, execution)
        else:
            hold.retry = how == "retry" or self.jobs.release(job_id, execution)

    def _is_asked_to_stop(self, job_id: str, execution: str) -> bool:
        """Whether only a request to cancel asks it to stop, which came too late."""
        with suppress(NotFound):
            job = self.jobs.get(job_id)
            return job.status == "running" and job.execution == execution
        return False

    def _start(self, hold: Hold) -> None:
        queue = self.jobs.rq_queues.queue("base", hold.short)
        try:
            hold.entry = Entry.fetch(hold.job_id, connection=self.redis, serializer=JSONSerializer)
        except NoSuchJobError:
            self.redis.lrem(queue.intermediate_queue_key, 1, hold.job_id)
            self.holds.remove(hold)
            return
        with self.redis.pipeline() as pipe:
            hold.execution = Execution.create(hold.entry, 600, pipeline=pipe, worker_name="w")
            hold.entry.prepare_for_execution("w", pipeline=pipe)
            pipe.lrem(queue.intermediate_queue_key, 1, hold.job_id)
            pipe.execute()

    def _clean_up(self, hold: Hold) -> None:
        """RQ's cleanup, as `EarmarkWorker` does it: only while the execution is registered.

        RQ itself fails where the execution's key has expired and housekeeping has not removed the execution yet.
        """
        assert hold.entry is not None and hold.execution is not None
        self.holds.remove(hold)
        registry = hold.entry.started_job_registry
        is_registered = self.redis.zscore(registry.key, hold.execution.composite_key) is not None
        with suppress(ValueError), self.redis.pipeline() as pipe:
            if is_registered and hold.retry:
                hold.entry.retry(self.jobs.rq_queues.queue("base", hold.short), pipe)
            elif is_registered:
                hold.entry.cleanup(0, pipeline=pipe, remove_from_queue=False)
            hold.execution.delete(hold.entry, pipe)
            pipe.execute()

    # Others

    @precondition(lambda self: self.published)
    @rule(number=NUMBERS, deletes=st.booleans())
    def two_workers_amend_a_result(self, number: int, deletes: bool) -> None:
        """Both have read the record before either changes it, or it is deleted."""
        job_id = sorted(self.published)[number % len(self.published)]
        with suppress(NotFound):
            complete = self.jobs.get(job_id)
            if deletes:
                self.jobs.delete(job_id)
                self.deleted.add(job_id)
            first, second = (self.published[job_id] | {"more": f"{complete.revision} {one}"} for one in "ab")
            assert self.jobs.amend(complete, first) == (not deletes)
            assert not self.jobs.amend(complete, second)
            self.published[job_id] = first

    @rule(
        by=st.lists(st.integers(0, 1), min_size=1, max_size=3), silent=st.none() | NUMBERS, drops_scripts=st.booleans()
    )
    def housekeeping_runs(self, by: list[int], silent: int | None, drops_scripts: bool) -> None:
        """One worker sends no heartbeat meanwhile, though it is alive; the server may have dropped its scripts."""
        if silent is not None and self.holds:
            execution = self.holds[silent % len(self.holds)].execution
            if execution is not None:
                self.redis.delete(execution.key)
        if drops_scripts:
            self.redis.script_flush()
        for number in by:
            self.housekeepers[number].sweep()

    @rule()
    def short_workers_start_or_stop(self) -> None:
        key = workers_key("base", short=True)
        if self.redis.zcard(key):
            self.redis.delete(key)
        else:
            self.redis.zadd(key, {"w0": time.time()})
            self.redis.zadd(workers_key("base"), {"w0": time.time()})

    @invariant()
    def published_results_stay(self) -> None:
        for job_id, result in getattr(self, "published", {}).items():
            if job_id not in self.deleted:
                job = self.jobs.get(job_id)
                assert (job.status, job.result) == ("succeeded", result)

    @invariant()
    def kept_bytes_are_those_of_the_records(self) -> None:
        kept = getattr(self, "published", {}).keys() - getattr(self, "deleted", set())
        for owner in ("", "key_a"):
            jobs = [job for job in getattr(self, "created", []) if job.owner == owner and job.id in kept]
            assert not hasattr(self, "jobs") or self.jobs.excerpt_bytes.total(owner) == EXCERPT_BYTES * len(jobs)

    def teardown(self) -> None:
        """All workers die, and a new one runs what remains: every job finishes, and no trace of it remains."""
        if not hasattr(self, "jobs"):
            return
        for key in self.redis.scan_iter("rq:execution:*"):
            self.redis.delete(key)
        self.holds.clear()
        rounds = 0
        while rounds < 3 or (self.jobs.unfinished_count() and rounds < 3 + ATTEMPTS * len(self.created)):
            for housekeeper in self.housekeepers:
                housekeeper.sweep()
            self.is_taken()
            while self.holds:
                self.goes_on(0, 1, "publish")
            rounds += 1
        for housekeeper in self.housekeepers:
            housekeeper.sweep()
        for job in self.created:
            if job.id not in self.deleted:
                record = self.jobs.get(job.id)
                assert record.is_finished, record
                revisions = [entry.revision for entry in read_all(self.redis, job.id)]
                assert revisions == list(range(1, record.revision + 1))
                assert record.attempts <= ATTEMPTS
            assert not self.redis.exists(users_key(job.audio_ids[0]))
        queue = self.jobs.fair_queue
        assert self.jobs.unfinished_count() == queue.waiting_count("base") == queue.waiting_seconds("base") == 0
        rq_keys: Any = [key for pattern in ("rq:job:*", "rq:queue:*", "rq:wip:*") for key in self.redis.keys(pattern)]
        assert rq_keys == []
        keys: Any = self.redis.keys("earmark:line:*")
        assert set(keys) <= {b"earmark:line:base:clock", b"earmark:line:base:load"}
        assert self.redis.hgetall("earmark:line:base:load") in ({}, {b"milliseconds": b"0"})


@pytest.fixture(scope="module")
def _deployment(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Redis(port=valkey.port) as client:
        Interleavings.redis, Interleavings.folder = client, tmp_path_factory.mktemp("interleavings")
        yield


@pytest.mark.soak
@pytest.mark.usefixtures("_deployment")
class TestInterleavings(Interleavings.TestCase):
    settings = hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
