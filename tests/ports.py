"""Free ports for servers that tests start."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

# Below the ephemeral range, so that no outgoing connection takes one.
_FIRST, _END, _BLOCK = 20_000, 32_000, 300
_guards: list[socket.socket] = []  # each holds the first port of a block for as long as this process lives


def free_ports(count: int) -> list[int]:
    """Return ports that are free on the loopback address.

    Each is returned once, and to one test process: a server may bind it seconds later, or again after its death, while
    other test processes look for ports too. Every server gets its port from here: two that find the same one for
    themselves would be taken for one another, and a test empties the queue of another.
    """
    return [next(_PORTS) for _ in range(count)]


def _own_ports() -> Iterator[int]:
    blocks = range(_FIRST, _END, _BLOCK)
    turn = os.getpid() % len(blocks)
    for first in (*blocks[turn:], *blocks[:turn]):
        guard = _bound(first)
        if guard is None:
            continue
        _guards.append(guard)
        for port in range(first + 1, first + _BLOCK):
            if (probe := _bound(port)) is not None:
                probe.close()
                yield port
    raise RuntimeError("no free ports")


def _bound(port: int) -> socket.socket | None:
    bound = socket.socket()
    with suppress(OSError):
        bound.bind(("127.0.0.1", port))
        return bound
    bound.close()
    return None


_PORTS = _own_ports()
