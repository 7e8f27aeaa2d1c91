"""Limit of the wrong keys that one address may send.

The limit protects logs and metrics from floods and slows guessing down; it never affects a valid key, whatever its
address. Each front-end process counts for itself, and remembers a bounded number of addresses: those that sent a wrong
key last.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

MOST_ADDRESSES = 10_000  # about 2 MB; who has more addresses than that is not slowed by a limit for each
_MINUTE = 60.0
_IPV6_NETWORK = 64  # bits: whoever has one address of such a network has all of it


class WrongKeyLimit:
    """Limit of the wrong keys that one address may send in a minute; for use on the event loop of the server only.

    The generic cell rate algorithm, as for the rates of keys: only the time at which a whole minute's allowance is
    available again is kept. `rate` 0: no limit. `clock`: seconds from any start.
    """

    def __init__(self, rate: int, most: int = MOST_ADDRESSES, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._most = most
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()  # by network, the one that sent a wrong key last at last

    def count(self, address: str) -> int:
        """Count a wrong key; return the seconds after which the address may send the next (0: now)."""
        if not self._rate:
            return 0
        network, now = _network(address), self._clock()
        full_at = max(now, self._full_at.get(network, now))
        wait = full_at + _MINUTE / self._rate - _MINUTE - now
        if wait <= 0:
            self._full_at[network] = full_at + _MINUTE / self._rate
            self._full_at.move_to_end(network)
            if len(self._full_at) > self._most:
                self._full_at.popitem(last=False)
        return max(0, math.ceil(wait))

    def __len__(self) -> int:
        return len(self._full_at)


def _network(address: str) -> str:
    """Return an IPv4 address, the network of an IPv6 address, or what is neither as it is."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 128 - _IPV6_NETWORK << 128 - _IPV6_NETWORK))
    return str(parsed)
