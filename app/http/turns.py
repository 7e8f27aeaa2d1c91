"""Turns of the event loop, which many clients share: so much a turn, and one of each client after another.

All that is ready runs before the event loop looks for what arrives. Where one client sends hundreds of requests at
once, everybody else would wait until each of them has begun.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

AT_ONCE = 16  # calls a turn, some milliseconds of processor time


class Turns:
    """Calls that wait for a turn of one event loop, in which they must be added."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once  # in this turn
        self._waiting: OrderedDict[Hashable, deque[Callable[[], object]]] = OrderedDict()  # next: the first client

    def add(self, client: Hashable, call: Callable[[], object]) -> None:
        """Call at once, or in a later turn if this one has had its share."""
        if self._left == self._at_once:
            asyncio.get_running_loop().call_soon(self._begin)
        if self._left:
            self._left -= 1
            call()
        else:
            self._waiting.setdefault(client, deque()).append(call)

    def _begin(self) -> None:
        self._left = self._at_once
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._begin)
        while self._waiting and self._left:
            self._left -= 1
            client, calls = self._waiting.popitem(last=False)
            call = calls.popleft()
            if calls:
                self._waiting[client] = calls
            call()
