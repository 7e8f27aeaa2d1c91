"""The cache of rendered poll responses, without HTTP."""

import asyncio

import pytest
from redis import Redis

from app.errors import NotFound
from app.jobs.lifecycle import Job
from app.jobs.listing import record_key
from app.jobs.poll_cache import PollCache
from app.jobs.repository import JobRepository
from app.redis_client import connect_async
from app.settings import Settings
from tests.app.records import new_job


def test_a_response_is_rendered_anew_with_urls_of_another_edition(redis: Redis, jobs: JobRepository) -> None:
    job_id = jobs.create(new_job()).job.id
    rendered = 0

    async def render(_: Job, __: int) -> tuple[bytes, str]:
        nonlocal rendered
        rendered += 1
        return str(rendered).encode(), ""

    async def poll(*editions: object) -> list[bytes]:
        port = redis.connection_pool.connection_kwargs["port"]
        async with connect_async(Settings(redis_url=f"redis://127.0.0.1:{port}/0")) as client:
            cache = PollCache(client)
            return [(await cache.get({}, job_id, edition, render)).body for edition in editions]

    assert asyncio.run(poll((1, 0), (1, 0), (1, 1), (2, 1))) == [b"1", b"1", b"2", b"3"]


def test_the_least_recently_polled_responses_are_dropped(redis: Redis, jobs: JobRepository) -> None:
    first, second, third = (jobs.create(new_job()).job.id for _ in range(3))
    record_bytes = max(redis.strlen(record_key(job_id)) for job_id in (first, second, third))
    rendered: list[tuple[str, int]] = []

    async def render(job: Job, position: int) -> tuple[bytes, str]:
        rendered.append((job.id, position))
        return b"", ""

    async def poll(*job_ids: str) -> None:
        port = redis.connection_pool.connection_kwargs["port"]
        async with connect_async(Settings(redis_url=f"redis://127.0.0.1:{port}/0")) as client:
            cache = PollCache(client, max_bytes=2 * record_bytes)
            for job_id in job_ids:
                await cache.get({}, job_id, 0.0, render)
            jobs.delete(second)
            with pytest.raises(NotFound):
                await cache.get({}, second, 0.0, render)

    asyncio.run(poll(first, second, first, third, first, second))
    assert rendered == [(first, 1), (second, 2), (third, 3), (second, 2)]
