"""Free ports for servers that tests start."""

import os
import socket

# Below the ephemeral range, so that no outgoing connection takes one; each is returned once, so that no two servers of
# one test get the same before the first has bound it.
_CANDIDATES = iter(range(20011 + os.getpid() % 5000, 32000))


def free_ports(count: int) -> list[int]:
    """Return ports that are free on the loopback address."""
    ports: list[int] = []
    for port in _CANDIDATES:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")
