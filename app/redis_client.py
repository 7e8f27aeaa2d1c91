"""Connections to Redis, its clock, commands for a full server, and coalescing of script calls on the event loop.

A server that has reached `maxmemory` refuses all commands that might take memory, and scripts when they call one unless
they are declared with `allow-oom`. So declared are those that free memory or finish what was accepted before: a full
server refuses only new records. They take little, and `app/budgets/redis_memory.py` leaves room for them.

A round trip costs the event loop far more time than Redis needs for the reply. `CoalescedScript` sends all calls that
arrive during one round trip together in the next one, so that many polls stay cheap.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry

from app.settings import Settings

log = logging.getLogger("earmark.redis")

_EXECUTE = """#!lua flags=allow-oom
local replies, cursor = {}, 1
while cursor <= #ARGV do
  local last = cursor + tonumber(ARGV[cursor])
  replies[#replies + 1] = redis.call(unpack(ARGV, cursor + 1, last)) or false
  cursor = last + 1
end
return replies
"""
_WRITE_CHECK_MS = 60_000


def connect(settings: Settings) -> Redis:
    """Return a connection pool for the Redis server; it connects on first use."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout,
        socket_connect_timeout=settings.redis_timeout,
        health_check_interval=30,
        retry=RedisRetry(ExponentialBackoff(cap=0.2, base=0.02), 3, (RedisConnectionError, RedisTimeoutError)),
    )


def connect_async(settings: Settings) -> redis_asyncio.Redis:
    """Return a client with a single connection for an event loop; close it on the same loop."""
    return redis_asyncio.Redis.from_url(
        settings.redis_url,
        single_connection_client=True,
        socket_timeout=settings.redis_timeout,
        socket_connect_timeout=settings.redis_timeout,
        health_check_interval=30,
        retry=AsyncRetry(ExponentialBackoff(cap=0.2, base=0.02), 3, (RedisConnectionError, RedisTimeoutError)),
    )


def execute_when_full(redis: Redis, pipe: Pipeline) -> list[Any]:
    """Execute the commands of a pipeline as one script, which Redis runs although it has reached `maxmemory`.

    Returns its replies, unparsed. For commands that free memory or finish what was accepted. Raises redis-py's errors.
    """
    words = [word for command, _ in pipe.command_stack for word in (len(command), *command)]
    replies: Any = redis.eval(_EXECUTE, 0, *words)
    return replies


def check_writes(redis: Redis) -> None:
    """Write a key. Raises redis-py's errors where the server is full, read-only or cannot write to its disk."""
    redis.set("earmark:written", 1, px=_WRITE_CHECK_MS)


class BackgroundRefresh:
    """Repeats a call in a thread of its own, `seconds` after its last end, but only while somebody asks for what it
    refreshes. A failure to reach Redis is logged: what was there before is used meanwhile."""

    def __init__(self, refresh: Callable[[], object], seconds: float, name: str) -> None:
        self._refresh = refresh
        self._seconds = seconds
        self._name = name
        self._next = 0.0
        self._running = threading.Lock()

    def start_if_due(self) -> None:
        """Start the thread where the time has come and none runs; returns at once."""
        if time.monotonic() >= self._next and self._running.acquire(blocking=False):
            threading.Thread(target=self._run, name=f"earmark-{self._name}", daemon=True).start()

    def postpone(self) -> None:
        """Let the next call be due after `seconds` from now."""
        self._next = time.monotonic() + self._seconds

    def close(self, seconds: float = 1.0) -> None:
        """Start no thread any more, and wait so long for one that runs: redis-py fails where another thread closes the
        connection that it uses."""
        self._running.acquire(timeout=seconds)

    def _run(self) -> None:
        try:
            self._refresh()
        except (RedisError, OSError) as error:
            log.warning("Redis was not asked for the %s again: %s", self._name, error)
        finally:
            self.postpone()
            self._running.release()


class ServerClock:
    """The clock of the Redis server: times that one process writes and another compares, and those that clients get.

    Clocks of machines may be wrong by minutes. A time is read from this process's monotonic clock, and its distance to
    the server's is measured in the background every `refresh_seconds`, so that only the first `now` takes a round trip.
    """

    def __init__(self, redis: Redis, refresh_seconds: float = 10.0, slow_seconds: float = 1.0) -> None:
        self._redis = redis
        self._slow_seconds = slow_seconds  # a round trip that takes longer tells the time too vaguely
        self._distance: float | None = None  # s by which the server's clock is ahead of the monotonic one
        self._refresh = BackgroundRefresh(self._measure, refresh_seconds, "clock")

    def now(self) -> float:
        """Return seconds since 1970. Raises redis-py's errors if the server has never replied."""
        distance = self._distance
        if distance is None:
            distance = self._measure()
            self._refresh.postpone()
        else:
            self._refresh.start_if_due()
        return time.monotonic() + distance

    def close(self) -> None:
        """Use the client no longer in the background."""
        self._refresh.close()

    def _measure(self) -> float:
        start = time.monotonic()
        seconds, microseconds = self._redis.time()
        end = time.monotonic()
        if self._distance is None or end - start < self._slow_seconds:
            self._distance = seconds + microseconds / 1e6 - (start + end) / 2
        return self._distance


_clocks: WeakValueDictionary[int, ServerClock] = WeakValueDictionary()  # by the id of a pool, which the clock holds


def server_clock(redis: Redis) -> ServerClock:
    """Return the clock of a client's server; all users of one connection pool share it."""
    return _clocks.setdefault(id(redis.connection_pool), ServerClock(redis))


class CoalescedScript:
    """A Lua script whose concurrent calls share round trips; one round trip is in flight at a time.

    The script receives the keys and arguments of any number of calls, the same number for each call, and returns one
    reply per call in their order; the reply to a failed call is an error reply.
    """

    def __init__(self, redis: redis_asyncio.Redis, script: Path) -> None:
        self._redis = redis
        self._script = script.read_text()
        self._digest: Any = ""
        self._waiting: list[tuple[list[str], list[str | int], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, keys: list[str], args: list[str | int]) -> Any:
        """Return the script's reply to one call. Raises redis-py's errors."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, args, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_waiting())
        return await future

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await self._send([call[:2] for call in batch])
            except TimeoutError as error:
                replies = [RedisTimeoutError(str(error))] * len(batch)
            except Exception as error:  # every caller must get a reply
                replies = [error] * len(batch)
            for (_, _, future), reply in zip(batch, replies, strict=True):
                if future.done():  # the caller was canceled
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    async def _send(self, calls: list[tuple[list[str], list[str | int]]]) -> list[Any]:
        keys = [key for call in calls for key in call[0]]
        arguments = (len(keys), *keys, *(argument for call in calls for argument in call[1]))
        if not self._digest:
            self._digest = await self._redis.script_load(self._script)
        try:
            replies: Any = await self._redis.execute_command("EVALSHA", self._digest, *arguments)
        except NoScriptError:  # the server was restarted
            await self._redis.script_load(self._script)
            replies = await self._redis.execute_command("EVALSHA", self._digest, *arguments)
        return replies
