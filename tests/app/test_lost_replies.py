"""Calls of Redis that are sent again since the connection broke before their reply: they have taken effect once."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from app.errors import OffsetMismatch, QuotaExceeded
from app.jobs.lifecycle import JobError
from app.jobs.repository import JobRepository
from app.keys.quotas import Allowance, Quotas, quota_key
from app.records.audio import AudioRepository, PendingUpload
from app.records.ids import new_id
from app.redis_client import connect
from app.settings import Settings
from tests.app.records import new_audio, new_job
from tests.app.relay import Relay, relay


@pytest.fixture
def lossy(valkey: Any, redis: Redis) -> Iterator[tuple[Redis, Relay]]:
    """A client of the server, as processes have it, and the relay between them."""
    with relay(f"http://127.0.0.1:{valkey.port}") as between:
        client = connect(Settings(redis_url=f"redis://127.0.0.1:{urlsplit(between.url).port}/0"))
        yield client, between
        client.close()


def used(redis: Redis) -> float:
    value: Any = redis.hget(quota_key("k"), "used")
    return float(value or 0)


def test_a_charge_and_a_refund_count_once(lossy: tuple[Redis, Relay], redis: Redis) -> None:
    client, between = lossy
    quotas, allowance = Quotas(client, Settings()), Allowance(0, -1, 0.0, 100, 0.0, 60)
    quotas.adjust("k", 0.0, 0.0)  # loads the script
    between.replies_to_lose = 1
    with quotas.charge("k", allowance, 60.0):
        assert used(redis) == allowance.used == 60.0
    between.replies_to_lose = 1
    with pytest.raises(KeyError), quotas.charge("k", allowance, 40.0):
        assert used(redis) == 100.0, "all of the quota, and no refusal"
        between.replies_to_lose = 1
        raise KeyError
    assert used(redis) == allowance.used == 60.0
    with pytest.raises(QuotaExceeded), quotas.charge("k", allowance, 41.0):
        pass


def test_a_piece_of_a_resumable_upload_is_listed_once(lossy: tuple[Redis, Relay]) -> None:
    """An upload whose request believed that another one had overtaken it would lose the piece that it lists."""
    client, between = lossy
    audio = AudioRepository(client, Settings())
    first = PendingUpload(id=new_id("aud"), filename=None, bytes=30, created_at=0, expires_at=9e9, offset=0)
    audio.create_pending(first, 0)
    second, third = (first.model_copy(update={"offset": size, "pieces": [f"0-{size}"]}) for size in (10, 20))
    audio.advance_pending(0, second)
    between.replies_to_lose = 1
    audio.advance_pending(10, third)
    assert audio.get_pending(first.id) == third
    with pytest.raises(OffsetMismatch):
        audio.advance_pending(10, second)


def test_a_job_is_created_claimed_and_ended_once(lossy: tuple[Redis, Relay], redis: Redis) -> None:
    client, between = lossy
    jobs, upload = JobRepository(client, Settings()), new_audio()
    AudioRepository(redis, Settings()).create(upload)
    jobs.cancel(jobs.create(new_job()).job.id)  # loads the script
    job = new_job(upload.id)
    between.replies_to_lose = 1
    assert jobs.create(job).position == 1
    assert jobs.fair_queue.waiting_count(job.model) == len(jobs.rq_queues.queue(job.model).get_job_ids()) == 1
    between.replies_to_lose = 1
    assert jobs.claim(job.id, "e") is not None
    assert jobs.get(job.id).attempts == 1
    between.replies_to_lose = 1
    assert jobs.fail(job.id, "e", JobError(code="audio_silent", detail="Silence."))
    assert [entry.decode() for entry, _ in redis.xrange(f"earmark:job:{job.id}:events")] == ["1-0", "2-0", "3-0"]  # pyright: ignore
    assert jobs.fair_queue.waiting_count(job.model) == jobs.unfinished_count() == 0
