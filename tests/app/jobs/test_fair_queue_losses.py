"""The fair queue after Redis has lost some of its keys: every job has its turn, once, and figures come true again.

A server with `maxmemory-policy allkeys-lru`, an operator's DEL, or a restored backup does that.
"""

import os
import random
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis import Redis

from app.jobs.fair_queue import waiting_key
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.records.shared import OPEN_JOBS_KEY
from tests.app.jobs.test_fair_queue import NOTICING, OWNERS, Model, announce, finish, job_of, settings_of, take

EXAMPLES = 100 if os.environ.get("EARMARK_SOAK") else 20
PREFIX = "earmark:line:base"
# Keys that follow from others: without them the order of turns is the same.
DERIVED = ("long heads", "short heads", "unserved", "load", "finish")
LISTS = ("jobs", "finish", "load", "clock", "entries", "outdated", "long heads", "short heads", "unserved")


def lists_of(redis: Redis) -> list[str]:
    """Return the keys of the owners' lists and trees."""
    return sorted(key.decode() for key in redis.scan_iter(f"{PREFIX}:* of *"))


class LossyMachine(RuleBasedStateMachine):
    """Jobs are created, canceled, taken and published while keys are lost, and the queue of the previous release comes
    back; after each loss housekeeping repairs the queue."""

    redis: Redis

    @initialize(workers=st.integers(0, 2))
    def begin(self, workers: int) -> None:
        self.redis.flushall()
        self.jobs = JobRepository(self.redis, NOTICING)
        announce(self.redis, *(f"w{number}" for number in range(workers)))
        self.waiting: dict[str, Job] = {}
        self.running: list[str] = []
        self.owners_lost = False

    @rule(owner=st.sampled_from(OWNERS), seconds=st.sampled_from([0.1, 7.5, 60.0, 3600.0, None]))
    def is_created(self, owner: str, seconds: float | None) -> None:
        job = self.jobs.create(job_of(owner, seconds)).job
        self.waiting[job.id] = job

    @precondition(lambda self: self.waiting)
    @rule(choice=st.randoms(use_true_random=False))
    def is_canceled(self, choice: random.Random) -> None:
        job_id = choice.choice(sorted(self.waiting))
        del self.waiting[job_id]
        self.jobs.cancel(job_id)

    @rule()
    def is_taken(self) -> None:
        if (job_id := take(self.jobs)) is not None:
            del self.waiting[job_id]  # fails if it is taken twice
            self.running.append(job_id)

    @precondition(lambda self: self.running)
    @rule()
    def is_published(self) -> None:
        finish(self.jobs, self.running.pop(0))

    @precondition(lambda self: self.waiting)
    @rule(names=st.sets(st.sampled_from(DERIVED), min_size=1))
    def derived_keys_are_lost(self, names: set[str]) -> None:
        before = self.order()
        self.redis.delete(*(f"{PREFIX}:{name}" for name in names))
        self.repair()
        assert self.order() == before

    @precondition(lambda self: self.waiting)
    @rule(
        names=st.sets(st.sampled_from((*LISTS, "waiting", "ready"))),
        some_lists=st.randoms(use_true_random=False),
        repaired=st.booleans(),
    )
    def any_keys_are_lost(self, names: set[str], some_lists: random.Random, repaired: bool) -> None:
        self.owners_lost = True
        known = {"waiting": waiting_key("base"), "ready": self.jobs.rq_queues.queue("base").key}
        found = lists_of(self.redis)
        lost = [known.get(name, f"{PREFIX}:{name}") for name in sorted(names)]
        self.redis.delete("none", *lost, *some_lists.sample(found, some_lists.randint(0, len(found))))
        if not repaired:  # requests come first: none fails
            self.jobs.fair_queue.fill("base")
            self.is_created("key_a", 60.0)
            self.is_canceled(some_lists)
        self.repair()

    @precondition(lambda self: self.waiting)
    @rule(names=st.sets(st.sampled_from(("jobs", "finish", "load", "clock", "waiting"))))
    def the_previous_release_comes_back(self, names: set[str]) -> None:
        """Its keys, some of which are lost, in place of this one's."""
        self.repair()
        self.owners_lost = True
        before = self.order()
        scores: Any = self.redis.zrange(waiting_key("base"), 0, -1, withscores=True)
        unserved: Any = self.redis.smembers(f"{PREFIX}:unserved")
        costs: Any = self.redis.hgetall(f"{PREFIX}:jobs")
        keep = {f"{PREFIX}:{name}" for name in ("jobs", "finish", "load", "clock")}
        self.redis.delete("none", *(key for key in self.redis.scan_iter(f"{PREFIX}:*") if key.decode() not in keep))
        for job_id, start in scores:
            if job_id in unserved:
                _, _, short, owner = costs[job_id].decode().split(" ", 3)
                self.redis.zadd(f"{PREFIX}:short" if short == "1" else PREFIX, {job_id: start})
                self.redis.zadd(f"{PREFIX}:of:{owner}", {job_id: start})
        self.redis.delete("none", *(waiting_key("base") if name == "waiting" else f"{PREFIX}:{name}" for name in names))
        self.jobs.fair_queue.fill("base")
        self.repair()
        if not names & {"jobs", "waiting"}:
            assert self.order() == before
        assert not self.redis.exists(PREFIX, f"{PREFIX}:short")

    def order(self) -> list[str]:
        """Return the ids of the waiting jobs in the order of their turns."""
        return self.jobs.fair_queue.waiting_ids("base")

    def repair(self) -> None:
        """Do what housekeeping does."""
        self.jobs.fair_queue.repair("base")
        for lost in self.jobs.find_lost():
            self.jobs.requeue(lost)
        self.jobs.fair_queue.repair("base")

    @invariant()
    def every_job_waits_once_and_is_counted(self) -> None:
        if not hasattr(self, "jobs"):
            return
        ready = self.jobs.rq_queues.queue("base").get_job_ids()
        listed: Any = self.redis.smembers(f"{PREFIX}:unserved")
        assert sorted([*ready, *(job_id.decode() for job_id in listed)]) == sorted(self.waiting)
        assert set(self.waiting) - set(ready) <= set(self.order()) <= set(self.waiting), (
            "a cost that is lost is not counted"
        )
        assert self.jobs.find_lost() == []
        seconds = sum(Model.cost(self.waiting[job_id]) * self.waiting[job_id].weight for job_id in self.order())
        assert self.jobs.fair_queue.waiting_seconds("base") == pytest.approx(seconds)
        open_jobs: Any = self.redis.smembers(OPEN_JOBS_KEY)
        assert {job_id.decode() for job_id in open_jobs} == {*self.waiting, *self.running}

    def teardown(self) -> None:
        if not hasattr(self, "jobs"):
            return
        while self.running:
            self.is_published()
        while self.waiting:
            self.is_taken()
            self.is_published()  # fails if no job was ready
        left = [key.decode() for key in self.redis.scan_iter(f"{PREFIX}*")]
        # Lists of an owner whom no key names any more are found when it has a job again.
        left = [key for key in left if key != f"{PREFIX}:clock" and not (self.owners_lost and "of" in key)]
        assert left == [], "nothing is left of jobs that have finished"


@pytest.fixture(scope="module")
def _redis(valkey: Any) -> Any:
    with Redis(port=valkey.port) as client:
        LossyMachine.redis = client
        yield


@pytest.mark.soak
@pytest.mark.usefixtures("_redis")
class TestLossyMachine(LossyMachine.TestCase):
    settings = hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)


def test_a_new_owner_does_not_overtake_all_others_when_the_virtual_time_is_lost(redis: Redis) -> None:
    jobs = JobRepository(redis, settings_of())
    for _ in range(20):
        jobs.create(job_of("key_a", 1000.0))
    for _ in range(10):
        finish(jobs, take(jobs) or "")
    redis.delete(f"{PREFIX}:clock")
    for _ in range(5):
        jobs.create(job_of("key_c", 1000.0, weight=1.0))
    owners = [jobs.get(job_id).owner for job_id in jobs.fair_queue.waiting_ids("base")]
    assert owners[:5].count("key_a") >= 2


def test_tags_are_brought_up_to_date_however_many_owners_have_canceled_jobs(redis: Redis) -> None:
    """They are in a hash that is too large to be read at once."""
    jobs = JobRepository(redis, settings_of())
    jobs.create(job_of("first"))
    made = [jobs.create(job_of("key_a", 100.0)).job for _ in range(3)]
    redis.hset(f"{PREFIX}:outdated", mapping={f"k{number}": 1 for number in range(600)})
    jobs.cancel(made[0].id)
    for _ in range(10):
        jobs.fair_queue.fill("base")
    assert not redis.exists(f"{PREFIX}:outdated")


def test_jobs_that_are_not_ours_have_no_age(redis: Redis) -> None:
    jobs = JobRepository(redis, settings_of())
    jobs.create(job_of(""))
    before = jobs.fair_queue.oldest_age("base")
    redis.rpush(jobs.rq_queues.queue("base").key, "00000000-0000-4000-8000-000000000000", "nightly report", b"\xff")
    assert before <= jobs.fair_queue.oldest_age("base") < before + 60
