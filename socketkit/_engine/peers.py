"""The peers of requests: which users and networks the limits allow, and the connections of each peer."""

from __future__ import annotations

import math
import socket
import threading

from socketkit._engine.accepting import TurnedAwayError
from socketkit._system.credentials import peer_credentials
from socketkit._system.networks import V4_BITS, V6_BITS, Networks, number
from socketkit.seams.events import Refusal

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit._engine.ledger import Entry
    from socketkit.seams import Address, Request
    from socketkit.seams.limits import Limits

_AF_UNIX = getattr(socket, "AF_UNIX", -1)

WRONG_NETWORK = Refusal("the client's network is not allowed", "network")
TOO_MANY = Refusal("max_per_peer is reached", "max_per_peer")


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
    """The limits for peers by their addresses: allowed networks, and open connections of each.

    Peers without connections have no entry, so the table is never larger than the ledger. The ledger calls `enter` for each request opened
    and `leave` for each one settled, in any thread. A connection whose client is named by a layer is entered once that layer has done so.
    """

    def __init__(self, limits: Limits) -> None:
        self._allow, self._deny = Networks(limits.allow), Networks(limits.deny)
        self._asks_who = bool(limits.allow or limits.deny)
        self._most = math.inf if limits.max_per_peer is None else limits.max_per_peer
        self._cut = {V4_BITS: V4_BITS - limits.v4_prefix, V6_BITS: V6_BITS - limits.v6_prefix}
        self._reply = limits.reply.encode()
        self._counts: dict[tuple[int, int], int] = {}
        self._entries: dict[Entry, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counts)

    @staticmethod
    def are_limited(limits: Limits) -> bool:
        """Return whether there is a limit for peers."""
        return bool(limits.max_per_peer is not None or limits.allow or limits.deny)

    def objection(self, client_address: Address, *, counted: bool) -> Refusal | None:
        """Return why one more request from this address must be refused, or None. counted: whether it is a connection."""
        if self._asks_who:
            who = number(client_address)
            if who is not None and (who in self._deny or (self._allow and who not in self._allow)):
                return WRONG_NETWORK
        if counted and self._most is not math.inf:
            peer = self._peer(client_address)
            if peer is not None and self._counts.get(peer, 0) >= self._most:
                return TOO_MANY
        return None

    def enter(self, entry: Entry) -> None:
        """Count a connection, unless its client is not named yet; datagrams are ignored."""
        if self._most is not math.inf and not isinstance(entry.request, tuple) and entry.is_named:
            peer = self._peer(entry.client_address)
            if peer is not None:
                with self._lock:
                    self._count(entry, peer)

    def name(self, entry: Entry) -> None:
        """Count a connection whose client was just named, in any thread. Raises: TurnedAwayError."""
        peer = None if self._most is math.inf else self._peer(entry.client_address)
        with self._lock:  # threads that name clients of one peer at the same time must not all find the last place free
            reason = self.objection(entry.client_address, counted=True)
            if reason is not None:
                raise TurnedAwayError(reason, self._reply)
            if peer is not None:
                self._count(entry, peer)

    def leave(self, entry: Entry) -> None:
        with self._lock:
            peer = self._entries.pop(entry, None)
            if peer is not None:
                self._counts[peer] -= 1
                if not self._counts[peer]:
                    del self._counts[peer]

    def _count(self, entry: Entry, peer: tuple[int, int]) -> None:
        self._entries[entry] = peer
        self._counts[peer] = self._counts.get(peer, 0) + 1

    def _peer(self, client_address: Address) -> tuple[int, int] | None:
        who = number(client_address)
        return who and (who[0], who[1] >> self._cut[who[0]])
