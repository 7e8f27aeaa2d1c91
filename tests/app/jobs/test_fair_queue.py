"""The line on a real Valkey: turns are fair, in audio seconds by weight; nothing is lost, and nothing served twice."""

import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis import Redis
from rq.registry import StartedJobRegistry

from app.errors import QueueFull
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.model_registry import workers_key
from app.settings import Settings
from tests.app.records import new_job

EXAMPLES = 200 if os.environ.get("EARMARK_SOAK") else 10
OWNERS = ("", "key_a", "key_b", "key_c")
WEIGHTS = {"": 1.0, "key_a": 1.0, "key_b": 2.0, "key_c": 0.5}


def settings_of(**chosen: Any) -> Settings:
    """Workers that announced themselves live on, however slow the test is."""
    return Settings(heartbeat_timeout=600, **chosen)


def job_of(owner: str, seconds: float | None = 10.0, weight: float | None = None) -> Job:
    chosen = WEIGHTS.get(owner, 1.0) if weight is None else weight
    return new_job().model_copy(update={"owner": owner, "weight": chosen, "audio_seconds": seconds})


def come(redis: Redis, *names: str, short: bool = False) -> None:
    """Workers announce that they live."""
    for name in names:
        redis.zadd(workers_key("base"), {name: time.time()})
        if short:
            redis.zadd(workers_key("base", short=True), {name: time.time()})


def take(jobs: JobRepository, short: bool = False) -> str | None:
    """A worker takes the first job off its ready list, and begins it."""
    queue = jobs.rq_queues.queue("base", short)
    taken: Any = jobs.redis.lmove(queue.key, queue.intermediate_queue_key)
    if taken is None:
        return None
    registry = StartedJobRegistry(queue=queue)
    jobs.redis.zadd(registry.key, {f"{taken.decode()}:{taken.decode()}": time.time() + 60})
    jobs.redis.lrem(queue.intermediate_queue_key, 1, taken)
    jobs.claim(taken.decode(), taken.decode())
    return taken.decode()


def end(jobs: JobRepository, job_id: str, short: bool = False) -> None:
    """Its worker has done it, and looks for another."""
    jobs.publish(job_id, job_id, [], {})
    registry = StartedJobRegistry(queue=jobs.rq_queues.queue("base", short))
    jobs.redis.zrem(registry.key, f"{job_id}:{job_id}")
    jobs.fair_queue.fill("base")


def served(jobs: JobRepository) -> list[str]:
    """All that waits, in the order in which one worker gets it."""
    order = []
    while (job_id := take(jobs)) is not None:
        order.append(job_id)
        end(jobs, job_id)
    return order


COSTS = st.floats(min_value=1.0, max_value=7200.0)


@pytest.mark.soak
@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.25, 1.0, 3.0, 10.0]), min_size=2, max_size=3),
    costs=st.lists(st.lists(COSTS, min_size=3, max_size=8), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_owners_who_wait_get_audio_by_weight(valkey: Any, weights: list[float], costs: list[list[float]], seed: int):
    """The theorem of start-time fair queueing: while two owners wait, what each got, divided by its weight, differs
    by no more than a longest job of each, divided by theirs."""
    with Redis(port=valkey.port) as redis:
        redis.flushall()
        jobs = JobRepository(redis, settings_of(short_seconds=0))
        made = [job_of(f"k{number}", cost, w) for number, w in enumerate(weights) for cost in costs[number]]
        random.Random(seed).shuffle(made)
        blocked = jobs.create(job_of("first", 1.0)).job  # on the ready list, so that all others wait for their turns
        for job in made:
            jobs.create(job)
        left = {job.id: job for job in made}
        got = dict.fromkeys((f"k{number}" for number in range(len(weights))), 0.0)
        longest = {owner: max(job.audio_seconds or 0 for job in made if job.owner == owner) for owner in got}
        assert [jobs.fair_queue.position(job) for job in (blocked, *made)].count(0) == 0
        for job_id in served(jobs)[1:]:
            job = left.pop(job_id)
            got[job.owner] += (job.audio_seconds or 0) / job.weight
            waiting = {other.owner for other in left.values()}
            for one in waiting:
                for other in waiting:
                    bound = sum(longest[owner] / weights[int(owner[1:])] for owner in (one, other))
                    assert got[one] - got[other] <= bound + 1e-3
        assert not left


@dataclass
class Fair:
    """What the line should do, in plain Python: start-time fair queueing, one ready list, no short workers."""

    clock: float = 0.0
    finish: dict[str, float] = field(default_factory=dict)
    line: list[tuple[float, str, Job]] = field(default_factory=list)

    def enter(self, job: Job) -> None:
        start = max(self.clock, self.finish.get(job.owner, 0.0))
        self.line.append((start, job.id, job))
        self.finish[job.owner] = start + self.burden(job)

    def cancel(self, job: Job) -> None:
        (gone,) = [place for place in self.line if place[2].id == job.id]
        self.line.remove(gone)
        moved = [place for place in self.line if place[2].owner == job.owner and place[0] > gone[0]]
        for place in moved:
            self.line.remove(place)
            self.line.append((place[0] - self.burden(job), place[1], place[2]))
        self.finish[job.owner] -= self.burden(job)

    def serve(self) -> Job:
        place = min(self.line)
        self.line.remove(place)
        self.clock = max(self.clock, place[0])
        return place[2]

    @staticmethod
    def burden(job: Job) -> float:
        return max(job.audio_seconds or 300.0, 1.0) / job.weight


class Lines(RuleBasedStateMachine):
    """Jobs come, are canceled, taken, done, given back, and lost by workers that die, in any order."""

    redis: Redis
    line: Fair
    ready: list[str]
    running: list[str]
    known: dict[str, Job]

    @initialize(workers=st.integers(0, 3))
    def begin(self, workers: int) -> None:
        self.redis.flushall()
        self.jobs = JobRepository(self.redis, settings_of(lost_after=0, job_attempts=100))
        come(self.redis, *(f"w{number}" for number in range(workers)))
        self.room = max(workers, 1)
        self.line, self.ready, self.running, self.known = Fair(), [], [], {}

    def expect_filled(self) -> None:
        while len(self.ready) < self.room and self.line.line:
            self.ready.append(self.line.serve().id)
        if not self.line.line:
            self.line.finish.clear()

    @rule(owner=st.sampled_from(OWNERS), seconds=st.sampled_from([0.1, 1.0, 7.5, 60.0, 3600.0, None]))
    def comes(self, owner: str, seconds: float | None) -> None:
        queued = self.jobs.create(job_of(owner, seconds))
        job = queued.job
        self.known[job.id] = job
        self.line.enter(job)
        self.expect_filled()
        assert queued.position == self.jobs.fair_queue.position(job) > 0

    @precondition(lambda self: self.known)
    @rule(choice=st.randoms(use_true_random=False), delete=st.booleans())
    def is_canceled(self, choice: random.Random, delete: bool) -> None:
        waiting = [*self.ready, *(place[1] for place in self.line.line)]
        if not waiting:
            return
        job = self.known.pop(choice.choice(sorted(waiting)))
        if delete:
            self.jobs.delete(job.id)
        else:
            self.jobs.cancel(job.id)
        assert not self.redis.exists(f"rq:job:{job.id}")
        if job.id in self.ready:
            self.ready.remove(job.id)
        else:
            self.line.cancel(job)
        self.expect_filled()

    @precondition(lambda self: self.ready)
    @rule()
    def is_taken(self) -> None:
        assert take(self.jobs) == self.ready[0]
        self.running.append(self.ready.pop(0))
        self.expect_filled()

    @precondition(lambda self: self.running)
    @rule()
    def is_done(self) -> None:
        job_id = self.running.pop(0)
        del self.known[job_id]
        end(self.jobs, job_id)

    @precondition(lambda self: self.running)
    @rule()
    def is_lost_with_its_worker(self) -> None:
        job_id = self.running.pop()
        self.redis.zrem(StartedJobRegistry(queue=self.jobs.rq_queues.queue("base")).key, f"{job_id}:{job_id}")
        (lost,) = self.jobs.find_lost()
        assert lost.id == job_id
        self.jobs.requeue(lost)
        self.ready.insert(0, job_id)

    @precondition(lambda self: self.ready)
    @rule()
    def is_taken_by_a_worker_that_dies_before_it_begins(self) -> None:
        self.redis.lpop(self.jobs.rq_queues.queue("base").key)
        (lost,) = self.jobs.find_lost()
        assert lost.id == self.ready[0]
        self.jobs.requeue(lost)

    @rule()
    def anybody_serves(self) -> None:
        self.jobs.fair_queue.fill("base")
        self.expect_filled()

    @invariant()
    def all_are_where_they_should_be(self) -> None:
        if not hasattr(self, "jobs"):
            return
        assert self.jobs.rq_queues.queue("base").get_job_ids() == self.ready
        assert self.jobs.find_lost() == []
        waiting = [*self.ready, *(place[1] for place in self.line.line)]
        assert self.jobs.fair_queue.waiting_count("base") == len(waiting)
        seconds = sum(max(self.known[job_id].audio_seconds or 300.0, 1.0) for job_id in waiting)
        assert self.jobs.fair_queue.waiting_seconds("base") == pytest.approx(seconds)
        order = [place[1] for place in sorted(self.line.line)]
        places = {job_id: self.jobs.fair_queue.position(self.known[job_id]) for job_id in order}
        assert sorted(places, key=lambda job_id: places[job_id]) == order, "positions tell the order of turns"
        assert sorted(places.values()) == list(range(len(waiting) - len(order) + 1, len(waiting) + 1))


@pytest.fixture(scope="module")
def _redis(valkey: Any) -> Any:
    with Redis(port=valkey.port) as client:
        Lines.redis = client
        yield


@pytest.mark.soak
@pytest.mark.usefixtures("_redis")
class TestLines(Lines.TestCase):
    settings = hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)


def test_a_thousand_jobs_of_one_key_delay_anothers_first_by_a_ready_list(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=5000))
    come(redis, "w1", "w2")
    many = [jobs.create(job_of("key_a")).job.id for _ in range(1000)]
    running = [take(jobs), take(jobs)]
    begun = time.perf_counter()
    other = jobs.create(job_of("key_c")).job
    print(f"a job took {1000 * (time.perf_counter() - begun):.1f} ms to enter behind 1,000")
    assert running == many[:2]
    assert jobs.fair_queue.position(other) == 3, "behind the ready list, of one job a worker"
    order = []
    for job_id in running:
        end(jobs, job_id or "")
    for _ in range(4):
        order.append(take(jobs))
        end(jobs, order[-1] or "")
    assert order[:3] == [many[2], many[3], other.id]


def test_a_key_that_sends_one_job_after_another_gets_its_share_beside_many(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=5000))
    for _ in range(100):
        jobs.create(job_of("key_a"))
    own, next_one = 0, jobs.create(job_of("key_b")).job  # of twice the weight
    for _ in range(90):
        job_id = take(jobs)
        end(jobs, job_id or "")
        if job_id == next_one.id:
            own += 1
            next_one = jobs.create(job_of("key_b")).job
    assert 28 <= own <= 60, "at least a third, at most two: it is not always waiting when its turn comes"


def test_who_cancels_what_waits_gets_its_turns_back(redis: Redis):
    jobs = JobRepository(redis, settings_of())
    first = jobs.create(job_of("key_b")).job
    many = [jobs.create(job_of("key_a", 1000.0)).job for _ in range(50)]
    for job in many[:49]:
        jobs.cancel(job.id)
    others = [jobs.create(job_of("key_b")).job for _ in range(5)]
    assert served(jobs) == [first.id, many[49].id, *(job.id for job in others)]


@pytest.mark.parametrize("limit", ["jobs", "seconds"])
def test_a_keys_jobs_fill_a_part_of_the_queue_and_all_keys_jobs_the_whole(redis: Redis, limit: str):
    chosen: dict[str, Any] = {"queue_jobs": 4} if limit == "jobs" else {"queue_audio_seconds": 40.0}
    jobs = JobRepository(redis, settings_of(**chosen))
    jobs.create(job_of("key_a"))
    jobs.create(job_of("key_a"))
    with pytest.raises(QueueFull, match="your own"):
        jobs.create(job_of("key_a"))
    jobs.create(job_of("key_b"))
    last = jobs.create(job_of("key_b")).job
    with pytest.raises(QueueFull, match="Too many jobs"):
        jobs.create(job_of("key_c"))
    jobs.cancel(last.id)
    jobs.create(job_of("key_c"))


def test_without_keys_jobs_may_fill_the_queue(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=4))
    for _ in range(4):
        jobs.create(job_of(""))
    with pytest.raises(QueueFull):
        jobs.create(job_of(""))


class TestShort:
    """Workers for short jobs only."""

    def test_short_jobs_do_not_wait_behind_long_ones(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        come(redis, "any")
        come(redis, "short", short=True)
        long = [jobs.create(job_of("key_a", 7200.0)).job.id for _ in range(3)]
        assert take(jobs) == long[0]
        short = [jobs.create(job_of("key_b", 10.0)).job.id for _ in range(10)]
        assert jobs.rq_queues.queue("base").get_job_ids() == [long[1]], "no short job waits behind a long one"
        done = []
        while (job_id := take(jobs, short=True)) is not None:
            done.append(job_id)
            end(jobs, job_id, short=True)
        assert done == short
        end(jobs, long[0])
        assert take(jobs) == long[1]

    def test_idle_workers_for_any_job_take_short_ones_too(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        come(redis, "any 1", "any 2")
        come(redis, "short", short=True)
        short = [jobs.create(job_of("key_b", 10.0)).job.id for _ in range(5)]
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == short[:1]
        assert jobs.rq_queues.queue("base").get_job_ids() == short[1:3]
        taken = [take(jobs, short=True), take(jobs), take(jobs)]
        assert taken == short[:3]
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == short[3:4]
        assert jobs.rq_queues.queue("base").get_job_ids() == [], "the rest waits for whoever is free first"
        end(jobs, short[1])
        assert take(jobs) == short[4]

    def test_when_the_last_of_them_has_gone_the_others_do_their_jobs(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        come(redis, "any")
        come(redis, "short", short=True)
        for _ in range(4):
            jobs.create(job_of("key_b", 10.0))
        assert len(jobs.rq_queues.queue("base", short=True).get_job_ids()) == 1
        redis.zrem(workers_key("base", short=True), "short")
        redis.zrem(workers_key("base"), "short")
        jobs.fair_queue.fill("base")
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == []
        assert len(served(jobs)) == 4

    def test_a_recording_of_unknown_length_is_not_short(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        come(redis, "short", short=True)
        job = jobs.create(job_of("key_b", None)).job
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == []
        assert jobs.rq_queues.queue("base").get_job_ids() == [job.id]
