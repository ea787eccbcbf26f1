"""How many connections a receiver keeps: peers that have completed the handshake, and visitors that have not.

Visitors may be anyone, so they have a quota of their own, in total and for each address. A new visitor is always let in: if a quota is
full, an older visitor leaves for it. So idle connections cannot keep a peer out, and they cannot push out a peer that is already served.
OpenSSH's MaxStartups and PerSourceMaxStartups limit the same, but refuse the newcomer.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from typing import Generic, TypeVar

MOST_PEERS = 64
MOST_VISITORS = 128
MOST_VISITORS_PER_ADDRESS = 96

Visit = TypeVar("Visit")  # a connection


class Visitors(Generic[Visit]):
    """The connections of one receiver. Thread-safe.

    Parameters
    ----------
    most_peers : int
        Connections that have completed the handshake.
    most : int
        Visitors: connections that have not completed it.
    most_per_address : int
        Visitors from one address.
    """

    def __init__(self, most_peers: int = MOST_PEERS, most: int = MOST_VISITORS, most_per_address: int = MOST_VISITORS_PER_ADDRESS) -> None:
        self.most_peers, self._most, self._most_per_address = most_peers, most, most_per_address
        self._visitors: dict[Visit, str] = {}  # in order of arrival -> address
        self._peers: set[Visit] = set()
        self._lock = threading.Lock()

    def enter(self, visit: Visit, address: str) -> list[Visit]:
        """Let a new connection in. Returns the visitors that have to leave for it: none, or the oldest of an address with too many."""
        address, leaving = network_of(address), []
        with self._lock:
            if list(self._visitors.values()).count(address) >= self._most_per_address:
                leaving.append(self._evict(address))
            elif len(self._visitors) >= self._most:
                leaving.append(self._evict(Counter(self._visitors.values()).most_common(1)[0][0]))
            self._visitors[visit] = address
        return leaving

    def greet(self, visit: Visit) -> bool:
        """A visitor has completed the handshake. Returns whether there is room for one more peer."""
        with self._lock:
            if self._visitors.pop(visit, None) is None:
                return True  # it was evicted in this moment, so its connection ends anyway
            if len(self._peers) >= self.most_peers:
                return False
            self._peers.add(visit)
            return True

    def leave(self, visit: Visit) -> None:
        """A connection has ended."""
        with self._lock:
            self._visitors.pop(visit, None)
            self._peers.discard(visit)

    def _evict(self, address: str) -> Visit:
        """Remove the oldest visitor from this address."""
        oldest = next(visit for visit, where in self._visitors.items() if where == address)
        del self._visitors[oldest]
        return oldest


def network_of(peer: str) -> str:
    """The address that a quota counts: the host of host:port, and of an IPv6 address its /64, which one site can use as it likes."""
    host = peer.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return peer  # a Unix socket: all its peers are one address
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
