"""The fair queue serves jobs in the order of its predecessor, which moved every later job of an owner up at once."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from rq.registry import StartedJobRegistry

from app.jobs.fair_queue import FairQueue, _key_prefix, waiting_key
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import queue_name
from app.model_registry import workers_key
from app.settings import Settings
from tests.app.jobs.test_fair_queue import announce, finish, job_of, settings_of, take

EXAMPLES = 300 if os.environ.get("EARMARK_SOAK") else 15


class FairQueueByShifts(FairQueue):
    """The predecessor."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self._script = redis.register_script(Path(__file__).with_name("fair_queue_by_shifts.lua").read_text())

    def _key_names(self, model: str) -> tuple[str, ...]:
        prefix, ready = _key_prefix(model), []
        for short in (False, True):
            queue = Queue(queue_name(model, short=short), connection=self._redis)
            ready += [queue.key, queue.intermediate_queue_key, StartedJobRegistry(queue=queue).key]
        return (
            *(waiting_key(model), prefix, f"{prefix}:short", f"{prefix}:jobs", f"{prefix}:finish", f"{prefix}:load"),
            *(f"{prefix}:clock", "earmark:lines", Queue.redis_queues_keys),
            *(workers_key(model), workers_key(model, short=True)),
            *ready,
        )


@pytest.mark.soak
@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 10**9), steps=st.integers(20, 120), workers=st.integers(0, 3), short=st.booleans())
def test_jobs_are_served_in_the_same_order(valkey: Any, seed: int, steps: int, workers: int, short: bool) -> None:
    choose = random.Random(seed)
    sides: list[JobRepository] = []
    with Redis(port=valkey.port, db=0) as one, Redis(port=valkey.port, db=1) as other:
        one.flushall()
        for redis in (one, other):
            sides.append(JobRepository(redis, settings_of(queue_jobs=10_000, queue_share=1)))
            announce(redis, *(f"w{number}" for number in range(workers)))
            if short:
                announce(redis, "short", short=True)
        sides[1].fair_queue = FairQueueByShifts(other, settings_of(queue_jobs=10_000, queue_share=1))
        waiting: dict[str, Job] = {}
        running: list[tuple[str, bool]] = []
        positions: tuple[list[int], list[int]] = ([], [])
        for _ in range(steps):
            roll = choose.random()
            if roll < 0.5 or not waiting:
                # Costs and weights with which sums of floats are exact, in whatever order.
                owner, weight = choose.choice([("", 1.0), ("a", 1.0), ("b", 2.0), ("c", 0.5), ("d", 4.0)])
                job = job_of(owner, choose.choice([1.0, 8.0, 60.0, 64.0, 3600.0, None]), weight)
                waiting[job.id] = job
                for jobs in sides:
                    jobs.create(job)
            elif roll < 0.75:
                job = waiting.pop(choose.choice(sorted(waiting)))
                for jobs in sides:
                    jobs.cancel(job.id)
            elif roll < 0.9:
                is_short = choose.random() < 0.5
                taken, same = (take(jobs, is_short) for jobs in sides)
                assert taken == same
                if taken is not None:
                    waiting.pop(taken)
                    running.append((taken, is_short))
            elif running:
                job_id, is_short = running.pop(choose.randrange(len(running)))
                for jobs in sides:
                    finish(jobs, job_id, is_short)
            for is_short in (False, True):
                ready, expected = (jobs.rq_queues.queue("base", is_short).get_job_ids() for jobs in sides)
                assert ready == expected
            positions = tuple([jobs.fair_queue.position(job) for job in waiting.values()] for jobs in sides)
            assert positions[0] == positions[1]
