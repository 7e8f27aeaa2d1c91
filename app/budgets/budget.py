"""Budget: what the clients of a process share, with a bound in all and a share of it for each API key.

Request handlers hold an amount of a budget while they need it:

    async with budgets.uploads.hold(caller.key_id):
        ...

A request whose key has used up its share, or that finds nothing left of the budget, waits for `patience` seconds and is
then refused: 429 `rate_limited` if its key has used up its share, 503 `overloaded` if all is used up. Waiting requests
are served in turn: next is the first one of the key that holds least. Budgets that span processes (requests a minute,
audio seconds a day, waiting jobs) are in Redis: `app/keys/quotas.py`, `app/jobs/fair_queue.py`.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.errors import EarmarkError, Overloaded, RateLimited

_RETRY_AFTER = 5  # s
_SCARCE_SECONDS = 60.0  # for which a request that found no room counts: the client may try again


@dataclass(eq=False)
class _Waiter:
    amount: float
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Hold:
    """An amount that a request holds; it may grow while it is held. has_waited: whether the request waited for it."""

    def __init__(self, budget: "Budget", key_id: str, amount: float, has_waited: bool) -> None:
        self._budget = budget
        self._key_id = key_id
        self.amount = amount
        self.has_waited = has_waited

    def grow(self, amount: float) -> None:
        """Hold `amount` more, without waiting. Raises `RateLimited` and `Overloaded`."""
        self._budget.take(self._key_id, amount)
        self.amount += amount


class Budget:
    """One budget. Not thread-safe: for the event loop of the server only.

    `noun`: what is counted, in the plural, for error messages. `share`: of `total`, that one key may hold, at least 1;
    requests without a key may hold all of it; None: it is held before any key is known. `patience`: seconds that a
    request waits before it is refused.
    """

    def __init__(self, name: str, noun: str, total: float, share: float | None, patience: float = 0.0) -> None:
        self.name = name
        self.noun = noun
        self.total = total
        self.has_shares = share is not None
        self.per_key = total if share is None else max(1.0, math.floor(total * share))
        self.patience = patience
        self.used = 0.0
        self.refused: Counter[str] = Counter()  # by scope: `key`, `all`, `slow`
        self._used_by_key: defaultdict[str, float] = defaultdict(float)
        self._waiters: dict[str, deque[_Waiter]] = {}
        self._short_at: dict[str, float] = {}  # when a request last found no room, by key; "": of the total

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return sum(len(waiters) for waiters in self._waiters.values())

    @property
    def keys(self) -> set[str]:
        """The keys that hold some of it, or wait."""
        return {*self._used_by_key, *self._waiters}

    @asynccontextmanager
    async def hold(self, key_id: str, amount: float = 1.0) -> AsyncIterator[Hold]:
        """Hold an amount while the block runs. Raises `RateLimited` and `Overloaded`, after `patience` seconds."""
        hold = Hold(self, key_id, amount, await self._acquire(key_id, amount))
        try:
            yield hold
        finally:
            self.give_back(key_id, hold.amount)

    def is_scarce(self, key_id: str) -> bool:
        """Whether others need what a key holds: requests of all keys, or of this one, have lately found no room."""
        now = time.monotonic()
        return any(now - self._short_at.get(scope, -math.inf) < _SCARCE_SECONDS for scope in ("", key_id))

    def take_back(self) -> Overloaded:
        """Return the error for a request that must give back what it holds, since it is slow and others need it."""
        self.refused["slow"] += 1
        return Overloaded(f"The upload is too slow while the server is short of {self.noun}; try again later.")

    def take(self, key_id: str, amount: float) -> None:
        """Add an amount to what a key holds. Raises `RateLimited` and `Overloaded`."""
        if not self._has_room(key_id, amount):
            raise self.refuse(key_id, amount)
        self._add(key_id, amount)

    def give_back(self, key_id: str, amount: float) -> None:
        """Take an amount from what a key holds, for the requests that wait."""
        self._add(key_id, -amount)
        self._serve()

    def refuse(self, key_id: str, amount: float) -> EarmarkError:
        """Count a refusal and return its error, `RateLimited` or `Overloaded`."""
        self._note_shortage(key_id, amount)
        if self._exceeds_share(key_id, amount):
            self.refused["key"] += 1
            return RateLimited(f"The limit of a key on {self.noun} is {self.per_key:.0f} at once.", _RETRY_AFTER)
        self.refused["all"] += 1
        return Overloaded(f"The server has as many {self.noun} as it can take; try again later.")

    async def _acquire(self, key_id: str, amount: float) -> bool:
        """Add an amount to what a key holds; return whether it waited for it."""
        if not self._waiters.get(key_id) and self._has_room(key_id, amount):
            self._add(key_id, amount)
            return False
        if not self.patience:
            raise self.refuse(key_id, amount)
        self._note_shortage(key_id, amount)
        waiter = _Waiter(amount)
        self._waiters.setdefault(key_id, deque()).append(waiter)
        try:
            async with asyncio.timeout(self.patience):
                await asyncio.shield(waiter.granted)
            return True
        except TimeoutError:
            if waiter.granted.done():  # in the same turn of the event loop
                return True
            raise self.refuse(key_id, amount) from None
        except BaseException:
            if waiter.granted.done():
                self._add(key_id, -amount)
            raise
        finally:
            self._forget(key_id, waiter)
            self._serve()

    def _serve(self) -> None:
        """Grant what is left to waiting requests, first to the key that holds least."""
        while True:
            served = [key_id for key_id, waiters in self._waiters.items() if self._has_room(key_id, waiters[0].amount)]
            if not served:
                return
            key_id = min(served, key=lambda each: self._used_by_key.get(each, 0.0))
            waiter = self._waiters[key_id][0]
            self._add(key_id, waiter.amount)
            self._forget(key_id, waiter)
            waiter.granted.set_result(None)

    def _forget(self, key_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(key_id)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[key_id]

    def _has_room(self, key_id: str, amount: float) -> bool:
        return self.used + amount <= self.total and not self._exceeds_share(key_id, amount)

    def _exceeds_share(self, key_id: str, amount: float) -> bool:
        return bool(key_id) and self._used_by_key.get(key_id, 0.0) + amount > self.per_key

    def _add(self, key_id: str, amount: float) -> None:
        self.used += amount
        self._used_by_key[key_id] += amount
        if not self._used_by_key[key_id]:
            del self._used_by_key[key_id]

    def _note_shortage(self, key_id: str, amount: float) -> None:
        now = time.monotonic()
        recent = {scope: at for scope, at in self._short_at.items() if now - at < _SCARCE_SECONDS}
        self._short_at = recent | {key_id if self._exceeds_share(key_id, amount) else "": now}
