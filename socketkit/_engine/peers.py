"""The peers of requests: their addresses as numbers, the networks and users that limits name, and the connections of each."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from socketkit._system.credentials import peer_credentials
from socketkit.seams import Address, Request

if TYPE_CHECKING:
    from socketkit._engine.ledger import Entry

_V4_MAPPED = bytes(10) + b"\xff\xff"

_AF_UNIX = getattr(socket, "AF_UNIX", -1)

V4_BITS, V6_BITS = 32, 128


def is_stranger(request: Request, users: frozenset[int]) -> bool:
    """Return whether it comes from a Unix peer that is not, or cannot be identified as, one of the users."""
    sock = request[1] if isinstance(request, tuple) else request
    if getattr(sock, "family", None) != _AF_UNIX:
        return False
    try:
        return peer_credentials(sock).uid not in users
    except OSError:  # always for datagrams
        return True


def number(client_address: Address) -> tuple[int, int] | None:
    """Return an internet address as its length in bits and its integer value; None for any other address."""
    if not isinstance(client_address, tuple) or not isinstance(client_address[0], str):
        return None
    host = client_address[0]
    try:
        return V4_BITS, int.from_bytes(socket.inet_pton(socket.AF_INET, host), "big")
    except OSError:
        pass
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return None
    if packed.startswith(_V4_MAPPED):
        return V4_BITS, int.from_bytes(packed[len(_V4_MAPPED) :], "big")
    return V6_BITS, int.from_bytes(packed, "big")


class Networks:
    """A set of networks; test results of `number` with `in`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: list[tuple[int, int, int]] = []
        for text in texts:
            from ipaddress import ip_network  # noqa: PLC0415 - only when networks are given

            network = ip_network(text)
            self._known.append((network.max_prefixlen, int(network.netmask), int(network.network_address)))

    def __bool__(self) -> bool:
        return bool(self._known)

    def __contains__(self, who: tuple[int, int]) -> bool:
        bits, value = who
        return any(bits == each and value & mask == network for each, mask, network in self._known)


class Peers:
    """Open connections per peer. Peers without connections have no entry, so it is never larger than the ledger.

    The ledger calls `enter` for each request opened and `leave` for each one settled, in any thread.
    """

    def __init__(self, most: int, v4_prefix: int, v6_prefix: int) -> None:
        self._most = most
        self._cut = {V4_BITS: V4_BITS - v4_prefix, V6_BITS: V6_BITS - v6_prefix}
        self._counts: dict[tuple[int, int], int] = {}
        self._entries: dict[Entry, tuple[int, int]] = {}  # kept because a layer may change the entry's address before it leaves
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def is_full(self, client_address: Address) -> bool:
        peer = self._peer(client_address)
        return peer is not None and self._counts.get(peer, 0) >= self._most

    def enter(self, entry: Entry) -> None:
        """Count a connection; datagrams are ignored."""
        peer = None if isinstance(entry.request, tuple) else self._peer(entry.client_address)
        if peer is not None:
            with self._lock:
                self._entries[entry] = peer
                self._counts[peer] = self._counts.get(peer, 0) + 1

    def leave(self, entry: Entry) -> None:
        with self._lock:
            peer = self._entries.pop(entry, None)
            if peer is not None:
                self._counts[peer] -= 1
                if not self._counts[peer]:
                    del self._counts[peer]

    def _peer(self, client_address: Address) -> tuple[int, int] | None:
        who = number(client_address)
        return who and (who[0], who[1] >> self._cut[who[0]])
