"""One script for many requests at once: those that come while Redis is being asked go together in the next question.

A question costs the event loop far more than Redis takes to answer it; asked for many at once, polls stay cheap when
there are many.
"""

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError


class Batches:
    """Runs one script on the event loop's connection to Redis; one question is under way at a time."""

    def __init__(self, redis: Redis, script: str) -> None:
        self._redis = redis
        self._script = script
        self._command: tuple[Any, ...] = ()
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def run(self, keys: list[str], args: list[str | int]) -> Any:
        """The script's reply. Raises redis-py's errors."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(((len(keys), *keys, *args), reply))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await reply

    async def _ask(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await self._replies([call for call, _ in batch])
            except Exception as error:  # whatever it is, nobody may wait for ever
                replies = [error] * len(batch)
            for (_, reply), told in zip(batch, replies, strict=True):
                if reply.done():  # its request was given up meanwhile
                    continue
                if isinstance(told, Exception):
                    reply.set_exception(told)
                else:
                    reply.set_result(told)

    async def _replies(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        if not self._command:
            self._command = ("EVALSHA", await self._redis.script_load(self._script))
        try:
            return await self._asked(calls)
        except NoScriptError:  # the server was started anew, and has done none of them
            await self._redis.script_load(self._script)
            return await self._asked(calls)

    async def _asked(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        if len(calls) == 1:
            return [await self._redis.execute_command(*self._command, *calls[0])]
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command(*self._command, *call)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, NoScriptError):
                raise reply
        return replies
