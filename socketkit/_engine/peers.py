"""The peers of requests: the users that limits name, and the connections of each peer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from socketkit._system.credentials import peer_credentials
from socketkit._system.networks import V4_BITS, V6_BITS, number
from socketkit.seams import Address, Request

if TYPE_CHECKING:
    from socketkit._engine.ledger import Entry

_AF_UNIX = getattr(socket, "AF_UNIX", -1)


def is_stranger(request: Request, users: frozenset[int]) -> bool:
    """Return whether it comes from a Unix peer that is not, or cannot be identified as, one of the users."""
    sock = request[1] if isinstance(request, tuple) else request
    if getattr(sock, "family", None) != _AF_UNIX:
        return False
    try:
        return peer_credentials(sock).uid not in users
    except OSError:  # always for datagrams
        return True


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
