"""One key holds as many connections as it can: others are served, and the process counts as alive and ready.

At a tenth of the default limits, in full under `make soak`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from redis import Redis

from app.settings import Settings
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav

SCALE = 1.0 if os.environ.get("EARMARK_SOAK") else 0.1
DEFAULTS = Settings.model_construct()
BOUNDS = {
    name: int(getattr(DEFAULTS, name) * SCALE) for name in ("connections", "requests_in_progress", "event_streams")
}
SHARE = DEFAULTS.key_share

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def _crowded_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("crowded-service")
    limits = {**LIMITS, **BOUNDS, "auth": "on"}
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, **limits), folder)


@pytest.fixture
def crowded_service(_crowded_service: Service, redis: Redis) -> Service:
    """A front end with keys on whose limits are a tenth of the defaults, empty."""
    return empty(_crowded_service)


def head(service: Service, request: str, *fields: str) -> bytes:
    """Return the head of a request with the key of the service's client."""
    fields = ("Host: x", f"Authorization: {service.client.headers.get('authorization', 'none')}", *fields)
    return "\r\n".join((f"{request} HTTP/1.1", *fields, "", "")).encode()


@asynccontextmanager
async def connections(service: Service, count: int, sent: bytes):
    """Open connections that each send the same, and keep them open; yield their readers."""
    pairs = []
    for _ in range(count):
        pairs.append(await asyncio.open_connection(*service.address))
        pairs[-1][1].write(sent)
    try:
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in pairs), return_exceptions=True)


async def count_statuses(readers: list[asyncio.StreamReader]) -> Counter[int]:
    """Return how many responses have which status; each error must say when to try again."""

    async def status(reader: asyncio.StreamReader) -> int:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        status = int(head.split()[1])
        assert (b"\r\nretry-after: " in head.lower()) == (status in (429, 503))
        return status

    return Counter(await asyncio.gather(*map(status, readers)))


async def assert_served(service: Service) -> None:
    """Check that a key is served: upload, event stream, poll; and that the process is alive and ready."""

    def ask() -> None:
        client = service.client
        for path in ("/livez", "/readyz"):
            assert client.get(path).status_code == 200
        job = service.separate(mixture={"audio_id": service.upload(wav(0.1))["id"]})
        with client.stream("GET", job["events_url"]) as answer:
            assert answer.status_code == 200
            assert next(answer.iter_lines()).startswith("retry")
        assert client.get(job["url"], headers={"Prefer": "wait=1"}).status_code == 200

    await asyncio.to_thread(ask)


def assert_given_back(service: Service) -> None:
    """Check that nothing is held any more, but the connections of the tests' own clients."""
    budgets = service.deps.budgets
    eventually(lambda: not budgets.streams.used and not budgets.requests.used)
    assert not budgets.streams.keys and not budgets.requests.keys


@pytest.mark.parametrize("kind", ["event streams", "long polls"])
def test_event_streams_and_long_polls_of_one_key_leave_room(crowded_service: Service, kind: str) -> None:
    many, other = crowded_service.with_key(), crowded_service.with_key()
    job = many.separate()
    sent = {
        "event streams": head(many, f"GET {job['events_url']}"),
        "long polls": head(many, f"GET {job['url']}", "Prefer: wait=60"),
    }[kind]
    share = int(BOUNDS["event_streams"] * SHARE)
    count = int(BOUNDS["connections"] * 0.7)
    budgets = many.deps.budgets
    before = budgets.streams.refused["key"], budgets.requests.refused["key"]  # by the tests before

    async def run() -> None:
        async with connections(many, count, sent) as readers:
            answered = readers if kind == "event streams" else []
            await asyncio.to_thread(eventually, lambda: budgets.streams.used == share, 30)
            statuses = await count_statuses(answered)
            assert statuses == ({200: share, 429: count - share} if answered else {})
            refusal = await asyncio.to_thread(many.client.get, job["url"], headers={"Prefer": "wait=1"})
            assert f"is {share} at once" in problem(refusal, 429, "rate_limited")["detail"]
            refusal = await asyncio.to_thread(many.client.get, job["events_url"])
            problem(refusal, 429, "rate_limited")
            poll = await asyncio.to_thread(many.client.get, job["url"])
            assert poll.status_code == 200, "a poll that does not wait holds no part of the budget"
            await assert_served(other)

    asyncio.run(run())
    assert_given_back(crowded_service)
    assert budgets.streams.refused["key"] > before[0]
    # Many at the same moment are more requests in progress than a key may have, too.
    assert budgets.streams.refused["key"] + budgets.requests.refused["key"] - sum(before) >= count - share


def test_requests_without_end_of_one_key_leave_room(crowded_service: Service) -> None:
    """Bodies that do not end are held like downloads that are not read: as requests in progress."""
    many, other = crowded_service.with_key(), crowded_service.with_key()
    sent = head(many, "POST /v1/queries", "Content-Type: application/json", "Content-Length: 99") + b"["
    share, count = int(BOUNDS["requests_in_progress"] * SHARE), int(BOUNDS["requests_in_progress"] * 0.8)
    budget = many.deps.budgets.requests
    before = budget.refused["key"]  # by the tests before

    def all_are_answered_or_held() -> bool:
        return budget.refused["key"] - before == count - share and budget.used == share

    async def run() -> None:
        async with connections(many, count, sent):
            await asyncio.to_thread(eventually, all_are_answered_or_held, 30)
            problem(await asyncio.to_thread(many.client.get, "/v1/models"), 429, "rate_limited")
            await assert_served(other)

    asyncio.run(run())
    assert_given_back(crowded_service)


def test_beyond_the_limit_of_connections_the_process_is_alive_and_ready(crowded_service: Service) -> None:
    """The connections send nothing, so that no key is known."""
    budget = crowded_service.deps.budgets.connections
    for client in crowded_service.clients:
        client.close()  # else one of their idle connections may end meanwhile, and leave room
    eventually(lambda: not budget.used)

    async def run() -> None:
        async with connections(crowded_service, BOUNDS["connections"] + 5, b""):
            await asyncio.to_thread(eventually, lambda: budget.used == budget.total, 30)
            surplus = crowded_service.with_key()  # its client has no connection yet
            for path in ("/livez", "/readyz"):
                assert (await asyncio.to_thread(surplus.client.get, path)).status_code == 200
            refusal = await asyncio.to_thread(surplus.client.get, "/v1/models")
            assert "as many connections" in problem(refusal, 503, "overloaded")["detail"]
            assert refusal.headers["connection"] == "close"
            page = await asyncio.to_thread(surplus.client.get, "/")
            problem(page, 503, "overloaded")

    asyncio.run(run())
    eventually(lambda: not budget.used)
    assert crowded_service.with_key().client.get("/v1/models").status_code == 200
    assert budget.refused["all"] == 2


@pytest.mark.parametrize(
    ("bounds", "name"),
    [
        ({"connections": 100}, "requests_in_progress"),
        ({"connections": 100, "requests_in_progress": 99}, "event_streams"),
        ({"event_streams": 1536}, "event_streams"),
    ],
)
def test_bounds_that_contradict_each_other_are_rejected(bounds: dict[str, int], name: str) -> None:
    with pytest.raises(ValidationError, match="must be less than EARMARK_") as error:
        Settings(**bounds)  # pyright: ignore[reportArgumentType]
    assert [each["loc"] for each in error.value.errors()] == [(name,)]
