"""The fair queue on a real Valkey: owners get audio by weight; no job is lost, and none is served twice."""

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
from app.model_registry.registry import workers_key
from app.settings import Settings
from tests.app.records import new_job

EXAMPLES = 200 if os.environ.get("EARMARK_SOAK") else 10
OWNERS = ("", "key_a", "key_b", "key_c")
WEIGHTS = {"": 1.0, "key_a": 1.0, "key_b": 2.0, "key_c": 0.5}


def settings_of(**chosen: Any) -> Settings:
    """Return settings with which announced workers stay alive, however slow the test is."""
    return Settings(heartbeat_timeout=600, **chosen)


# Jobs are lost at once, although the clocks of the test and the server differ by a round trip.
NOTICING = settings_of(job_attempts=100).model_copy(update={"lost_after": -60.0})


def job_of(owner: str, seconds: float | None = 10.0, weight: float | None = None) -> Job:
    chosen = WEIGHTS.get(owner, 1.0) if weight is None else weight
    return new_job().model_copy(update={"owner": owner, "weight": chosen, "audio_seconds": seconds})


def announce(redis: Redis, *names: str, short: bool = False) -> None:
    """Announce living workers."""
    for name in names:
        redis.zadd(workers_key("base"), {name: time.time()})
        if short:
            redis.zadd(workers_key("base", short=True), {name: time.time()})


def take(jobs: JobRepository, short: bool = False) -> str | None:
    """Take the first job off a ready list and claim it, as a worker does."""
    queue = jobs.rq_queues.queue("base", short)
    taken: Any = jobs.redis.lmove(queue.key, queue.intermediate_queue_key)
    if taken is None:
        return None
    registry = StartedJobRegistry(queue=queue)
    jobs.redis.zadd(registry.key, {f"{taken.decode()}:{taken.decode()}": time.time() + 60})
    jobs.redis.lrem(queue.intermediate_queue_key, 1, taken)
    jobs.claim(taken.decode(), taken.decode())
    return taken.decode()


def finish(jobs: JobRepository, job_id: str, short: bool = False) -> None:
    """Publish a job, as its worker does before it takes another."""
    jobs.publish(job_id, job_id, [], {})
    registry = StartedJobRegistry(queue=jobs.rq_queues.queue("base", short))
    jobs.redis.zrem(registry.key, f"{job_id}:{job_id}")
    jobs.fair_queue.fill("base")


def run_all(jobs: JobRepository) -> list[str]:
    """Run all waiting jobs on one worker; return their ids in order."""
    order = []
    while (job_id := take(jobs)) is not None:
        order.append(job_id)
        finish(jobs, job_id)
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
    """The theorem of start-time fair queueing: while two owners wait, the audio that each got, divided by its weight,
    differs by no more than the longest job of each, divided by its weight."""
    with Redis(port=valkey.port) as redis:
        redis.flushall()
        jobs = JobRepository(redis, settings_of(short_seconds=0))
        made = [job_of(f"k{number}", cost, w) for number, w in enumerate(weights) for cost in costs[number]]
        random.Random(seed).shuffle(made)
        blocked = jobs.create(job_of("first", 1.0)).job  # on the ready list, so that all others wait for their turns
        for job in made:
            jobs.create(job)
        remaining = {job.id: job for job in made}
        audio_by_owner = dict.fromkeys((f"k{number}" for number in range(len(weights))), 0.0)
        longest = {owner: max(job.audio_seconds or 0 for job in made if job.owner == owner) for owner in audio_by_owner}
        assert [jobs.fair_queue.position(job) for job in (blocked, *made)].count(0) == 0
        for job_id in run_all(jobs)[1:]:
            job = remaining.pop(job_id)
            audio_by_owner[job.owner] += (job.audio_seconds or 0) / job.weight
            waiting = {other.owner for other in remaining.values()}
            for one in waiting:
                for other in waiting:
                    bound = sum(longest[owner] / weights[int(owner[1:])] for owner in (one, other))
                    assert audio_by_owner[one] - audio_by_owner[other] <= bound + 1e-3
        assert not remaining


@dataclass
class Model:
    """A model of the queue in plain Python: start-time fair queueing, one ready list, no workers for short jobs."""

    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)
    unserved: list[tuple[float, str, Job]] = field(default_factory=list)  # by start tag

    def enter(self, job: Job) -> None:
        start = max(self.virtual_time, self.finish_tags.get(job.owner, 0.0))
        self.unserved.append((start, job.id, job))
        self.finish_tags[job.owner] = start + self.cost(job)

    def cancel(self, job: Job) -> None:
        (canceled,) = [place for place in self.unserved if place[2].id == job.id]
        self.unserved.remove(canceled)
        later = [place for place in self.unserved if place[2].owner == job.owner and place[0] > canceled[0]]
        for place in later:
            self.unserved.remove(place)
            self.unserved.append((place[0] - self.cost(job), place[1], place[2]))
        self.finish_tags[job.owner] -= self.cost(job)

    def serve(self) -> Job:
        place = min(self.unserved)
        self.unserved.remove(place)
        self.virtual_time = max(self.virtual_time, place[0])
        return place[2]

    @staticmethod
    def cost(job: Job) -> float:
        return max(job.audio_seconds or 300.0, 1.0) / job.weight


class FairQueueMachine(RuleBasedStateMachine):
    """Jobs are created, canceled, taken, published and lost by workers that die, in any order."""

    redis: Redis
    model: Model
    ready: list[str]
    running: list[str]
    known: dict[str, Job]

    @initialize(workers=st.integers(0, 3))
    def begin(self, workers: int) -> None:
        self.redis.flushall()
        self.jobs = JobRepository(self.redis, NOTICING)
        announce(self.redis, *(f"w{number}" for number in range(workers)))
        self.room = max(workers, 1)
        self.model, self.ready, self.running, self.known = Model(), [], [], {}

    def expect_filled(self) -> None:
        while len(self.ready) < self.room and self.model.unserved:
            self.ready.append(self.model.serve().id)
        if not self.model.unserved:
            self.model.finish_tags.clear()

    @rule(owner=st.sampled_from(OWNERS), seconds=st.sampled_from([0.1, 1.0, 7.5, 60.0, 3600.0, None]))
    def is_created(self, owner: str, seconds: float | None) -> None:
        queued = self.jobs.create(job_of(owner, seconds))
        job = queued.job
        self.known[job.id] = job
        self.model.enter(job)
        self.expect_filled()
        assert queued.position == self.jobs.fair_queue.position(job) > 0

    @precondition(lambda self: self.known)
    @rule(choice=st.randoms(use_true_random=False), delete=st.booleans())
    def is_canceled(self, choice: random.Random, delete: bool) -> None:
        waiting = [*self.ready, *(place[1] for place in self.model.unserved)]
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
            self.model.cancel(job)
        self.expect_filled()

    @precondition(lambda self: self.ready)
    @rule()
    def is_taken(self) -> None:
        assert take(self.jobs) == self.ready[0]
        self.running.append(self.ready.pop(0))
        self.expect_filled()

    @precondition(lambda self: self.running)
    @rule()
    def is_published(self) -> None:
        job_id = self.running.pop(0)
        del self.known[job_id]
        finish(self.jobs, job_id)

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
    def the_queue_is_filled(self) -> None:
        self.jobs.fair_queue.fill("base")
        self.expect_filled()
        assert not self.jobs.fair_queue.repair("base"), "it is whole"

    @invariant()
    def the_queue_equals_the_model(self) -> None:
        if not hasattr(self, "jobs"):
            return
        assert self.jobs.rq_queues.queue("base").get_job_ids() == self.ready
        assert self.jobs.find_lost() == []
        waiting = [*self.ready, *(place[1] for place in self.model.unserved)]
        assert self.jobs.fair_queue.waiting_count("base") == len(waiting)
        seconds = sum(max(self.known[job_id].audio_seconds or 300.0, 1.0) for job_id in waiting)
        assert self.jobs.fair_queue.waiting_seconds("base") == pytest.approx(seconds)
        order = [place[1] for place in sorted(self.model.unserved)]
        places = {job_id: self.jobs.fair_queue.position(self.known[job_id]) for job_id in order}
        assert sorted(places, key=lambda job_id: places[job_id]) == order, "positions follow the order of turns"
        assert sorted(places.values()) == list(range(len(waiting) - len(order) + 1, len(waiting) + 1))


@pytest.fixture(scope="module")
def _redis(valkey: Any) -> Any:
    with Redis(port=valkey.port) as client:
        FairQueueMachine.redis = client
        yield


@pytest.mark.soak
@pytest.mark.usefixtures("_redis")
class TestFairQueueMachine(FairQueueMachine.TestCase):
    settings = hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)


def test_a_thousand_jobs_of_one_key_delay_another_keys_first_job_by_one_ready_list(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=5000))
    announce(redis, "w1", "w2")
    many = [jobs.create(job_of("key_a")).job.id for _ in range(1000)]
    running = [take(jobs), take(jobs)]
    started = time.perf_counter()
    other = jobs.create(job_of("key_c")).job
    print(f"a job took {1000 * (time.perf_counter() - started):.1f} ms to enter behind 1,000")
    assert running == many[:2]
    assert jobs.fair_queue.position(other) == 3, "behind the ready list, of one job a worker"
    order = []
    for job_id in running:
        finish(jobs, job_id or "")
    for _ in range(4):
        order.append(take(jobs))
        finish(jobs, order[-1] or "")
    assert order[:3] == [many[2], many[3], other.id]


def test_a_key_with_one_job_at_a_time_gets_its_share_beside_a_key_with_many(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=5000))
    for _ in range(100):
        jobs.create(job_of("key_a"))
    served, next_job = 0, jobs.create(job_of("key_b")).job  # of twice the weight
    for _ in range(90):
        job_id = take(jobs)
        finish(jobs, job_id or "")
        if job_id == next_job.id:
            served += 1
            next_job = jobs.create(job_of("key_b")).job
    assert 28 <= served <= 60, "between one and two thirds: it does not always wait when its turn comes"


def test_canceling_waiting_jobs_returns_their_share(redis: Redis):
    jobs = JobRepository(redis, settings_of())
    first = jobs.create(job_of("key_b")).job
    many = [jobs.create(job_of("key_a", 1000.0)).job for _ in range(50)]
    for job in many[:49]:
        jobs.cancel(job.id)
    assert not jobs.fair_queue.repair("base")
    others = [jobs.create(job_of("key_b")).job for _ in range(5)]
    assert run_all(jobs) == [first.id, many[49].id, *(job.id for job in others)]


@pytest.mark.parametrize("limit", ["jobs", "seconds"])
def test_one_key_may_fill_its_share_of_the_queue_and_all_keys_the_whole(redis: Redis, limit: str):
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


def test_a_job_costs_what_it_is_charged_and_is_short_by_that(redis: Redis):
    """A short recording of many targets would keep the workers for short jobs busy for long."""
    jobs = JobRepository(redis, settings_of(short_seconds=10.0))
    many = job_of("key_a", 10.0).model_copy(update={"charged_seconds": 160.0})
    jobs.create(many)
    assert jobs.fair_queue.waiting_seconds("base") == 160.0
    cost: Any = redis.hget("earmark:line:base:jobs", many.id)
    assert cost.decode().split()[2] == "0"


def test_without_keys_jobs_may_fill_the_queue(redis: Redis):
    jobs = JobRepository(redis, settings_of(queue_jobs=4))
    for _ in range(4):
        jobs.create(job_of(""))
    with pytest.raises(QueueFull):
        jobs.create(job_of(""))


class TestShort:
    """With workers for short jobs only."""

    def test_short_jobs_do_not_wait_behind_long_ones(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        announce(redis, "any")
        announce(redis, "short", short=True)
        long = [jobs.create(job_of("key_a", 7200.0)).job.id for _ in range(3)]
        assert take(jobs) == long[0]
        short = [jobs.create(job_of("key_b", 10.0)).job.id for _ in range(10)]
        assert jobs.rq_queues.queue("base").get_job_ids() == [long[1]], "no short job waits behind a long one"
        done = []
        while (job_id := take(jobs, short=True)) is not None:
            done.append(job_id)
            finish(jobs, job_id, short=True)
        assert done == short
        finish(jobs, long[0])
        assert take(jobs) == long[1]

    def test_idle_workers_for_any_job_take_short_ones_too(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        announce(redis, "any 1", "any 2")
        announce(redis, "short", short=True)
        short = [jobs.create(job_of("key_b", 10.0)).job.id for _ in range(5)]
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == short[:1]
        assert jobs.rq_queues.queue("base").get_job_ids() == short[1:3]
        taken = [take(jobs, short=True), take(jobs), take(jobs)]
        assert taken == short[:3]
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == short[3:4]
        assert jobs.rq_queues.queue("base").get_job_ids() == [], "the others wait for the first free worker"
        finish(jobs, short[1])
        assert take(jobs) == short[4]

    def test_other_workers_take_their_jobs_when_the_last_of_them_has_died(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        announce(redis, "any")
        announce(redis, "short", short=True)
        for _ in range(4):
            jobs.create(job_of("key_b", 10.0))
        assert len(jobs.rq_queues.queue("base", short=True).get_job_ids()) == 1
        redis.zrem(workers_key("base", short=True), "short")
        redis.zrem(workers_key("base"), "short")
        jobs.fair_queue.fill("base")
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == []
        assert len(run_all(jobs)) == 4

    def test_a_recording_of_unknown_duration_is_not_short(self, redis: Redis):
        jobs = JobRepository(redis, settings_of())
        announce(redis, "short", short=True)
        job = jobs.create(job_of("key_b", None)).job
        assert jobs.rq_queues.queue("base", short=True).get_job_ids() == []
        assert jobs.rq_queues.queue("base").get_job_ids() == [job.id]
