"""Connections to Redis, and coalescing of script calls on the event loop.

A round trip costs the event loop far more than Redis takes to answer it. `CoalescedScript` sends the calls that arrive
during one round trip together in the next, so that polls stay cheap when there are many.
"""

import asyncio
from pathlib import Path
from typing import Any

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry

from app.settings import Settings


def connect(settings: Settings) -> Redis:
    """A pool of connections to the queue's server; it connects when first used."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout,
        socket_connect_timeout=settings.redis_timeout,
        health_check_interval=30,
        retry=RedisRetry(ExponentialBackoff(cap=0.2, base=0.02), 3, (RedisConnectionError, RedisTimeoutError)),
    )


def connect_async(settings: Settings) -> redis_asyncio.Redis:
    """The same for code on an event loop, on one connection; to be closed on it."""
    return redis_asyncio.Redis.from_url(
        settings.redis_url,
        single_connection_client=True,
        socket_timeout=settings.redis_timeout,
        socket_connect_timeout=settings.redis_timeout,
        health_check_interval=30,
        retry=AsyncRetry(ExponentialBackoff(cap=0.2, base=0.02), 3, (RedisConnectionError, RedisTimeoutError)),
    )


class CoalescedScript:
    """Asks one script on the event loop's connection to Redis; one question is under way at a time.

    The script is given the keys and arguments of any number of calls, of each as many as of the others, and returns a
    reply for each in their order: an error reply where one failed.
    """

    def __init__(self, redis: redis_asyncio.Redis, script: Path) -> None:
        self._redis = redis
        self._script = script.read_text()
        self._digest: Any = ""
        self._waiting: list[tuple[list[str], list[str | int], asyncio.Future[Any]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def run(self, keys: list[str], args: list[str | int]) -> Any:
        """The script's reply. Raises redis-py's errors."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, args, reply))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._send_waiting())
        return await reply

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await self._replies([call[:2] for call in batch])
            except TimeoutError as error:
                replies = [RedisTimeoutError(str(error))] * len(batch)
            except Exception as error:  # whatever it is, nobody may wait for ever
                replies = [error] * len(batch)
            for (_, _, reply), told in zip(batch, replies, strict=True):
                if reply.done():  # its request was given up meanwhile
                    continue
                if isinstance(told, Exception):
                    reply.set_exception(told)
                else:
                    reply.set_result(told)

    async def _replies(self, calls: list[tuple[list[str], list[str | int]]]) -> list[Any]:
        keys = [key for call in calls for key in call[0]]
        asked = (len(keys), *keys, *(argument for call in calls for argument in call[1]))
        if not self._digest:
            self._digest = await self._redis.script_load(self._script)
        try:
            replies: Any = await self._redis.execute_command("EVALSHA", self._digest, *asked)
        except NoScriptError:  # the server was started anew, and has not run it
            await self._redis.script_load(self._script)
            replies = await self._redis.execute_command("EVALSHA", self._digest, *asked)
        return replies
