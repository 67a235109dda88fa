"""Admission control: the checks before and after each accept. Built from `Limits` for one run."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

from socketkit._engine.accepting import NoRoomError
from socketkit._system.credentials import peer_credentials, user_id
from socketkit._system.logs import Log
from socketkit._system.sockets import is_readable

if TYPE_CHECKING:
    from socketkit._engine.accepting import Source
    from socketkit._engine.ledger import Entry, Ledger
    from socketkit.seams import Address, Clock, Request
    from socketkit.seams.limits import Limits

log = Log("socketkit.admission")

MARGIN = 64
"""Descriptors reserved for the program: standard streams, the loop's own, logs, late imports."""

_V4_MAPPED = bytes(10) + b"\xff\xff"

_AF_UNIX = getattr(socket, "AF_UNIX", -1)

V4_BITS, V6_BITS = 32, 128


class Admission:
    """Admits or refuses requests for the sources of one intake, in the thread that takes.

    The cap is hard because the check comes before the accept: one thread at a time takes, and its connection is in the ledger
    before the next check. By then the ledger may hold fewer connections, but never more. At the cap, all sources of connections
    are paused together, and the next settled connection resumes them. That resumption is never missed, because

    - the taking thread sets the ledger's `vacated` callback *before* it counts under the ledger's lock, and a settling thread reads
      `vacated` *after* it has removed its request. If the count still includes the request, it was removed after the count, hence
      after `vacated` was set, and the callback is called.
    - a settling thread clears `vacated` before calling it, and the call always ends with all sources resumed by the taking thread.
      So a thread that read `vacated` long ago and clears it late leaves no source paused.

    Shedding treats conversations that become idle the same way: `parked_one` of the intake is set before the intake is asked for an
    idle one, and a parking thread reads `parked_one` after it has parked.
    """

    def __init__(self, limits: Limits, ledger: Ledger, sources: Sequence[Source], draw: Callable[[], float] | None = None) -> None:
        """Begin.

        draw: returns a uniformly distributed number from 0.0 to less than 1.0; None: `random.random`.
        """
        self._most = limits.max_connections
        self._rejects, self._sheds = limits.overflow in {"reject", "early"}, limits.overflow == "shed"
        self._chance = None
        if limits.overflow == "early" and limits.max_connections is not None:
            self._chance = Chance(limits.early * limits.max_connections, limits.max_connections, draw)
        self.reply = limits.reply.encode()
        self._ledger = ledger
        self._open = ledger.in_work
        self._sources = sources
        self._counted = [source for source in sources if source.counted]
        self._allow, self._deny = Networks(limits.allow), Networks(limits.deny)
        self._asks_who = bool(limits.allow or limits.deny)
        self._users = frozenset(map(user_id, limits.allow_users))
        self._bucket = None if limits.rate is None else Bucket(limits.rate, limits.burst, ledger.clock)
        if limits.max_per_peer is not None and ledger.peers is None:  # otherwise an earlier run's counts are kept
            ledger.peers = Peers(limits.max_per_peer, limits.v4_prefix, limits.v6_prefix)
        self._peers: Peers | None = ledger.peers

    @staticmethod
    def is_needed(limits: Limits, *, counted: bool) -> bool:
        """Return whether the limits need checks; counted: whether the source delivers connections."""
        of_connections = counted and (limits.max_connections is not None or limits.max_per_peer is not None)
        return of_connections or limits.rate is not None or bool(limits.allow or limits.deny or limits.allow_users)

    def permit(self, source: Source) -> None:
        """Check before an accept. Raises: NoRoomError with the sources to pause; BlockingIOError when no client waits."""
        if self._most is not None and len(self._open) >= self._most and source.counted and not self._rejects:
            self._look_for_room(source, self._most)
        if self._bucket is not None:
            seconds = self._bucket.due()
            if seconds > 0:
                source.intake.call_later(seconds, self._resume)
                raise NoRoomError(self._sources)

    def objection(self, request: Request, client_address: Address) -> str | None:
        """Return why an accepted request must be refused, or None to serve it. Takes a token if there is a rate."""
        if self._bucket is not None:
            self._bucket.take()
        if self._asks_who:
            who = number(client_address)
            if who is not None and (who in self._deny or (self._allow and who not in self._allow)):
                return "its network is not allowed"
        if self._users and _is_stranger(request, self._users):
            return "its user is not allowed"
        return None if isinstance(request, tuple) else self._crowd(client_address)

    # inside

    def _crowd(self, client_address: Address) -> str | None:
        """Return why there are too many connections to take one more from this peer, or None."""
        if self._rejects and self._most is not None:
            others = self._ledger.connections()
            if others >= self._most:
                return "as many connections are open as may be"
            if self._chance is not None and self._chance.is_against(others):
                return "nearly as many connections are open as may be, and chance was against it"
        if self._peers is not None and self._peers.is_full(client_address):
            return "as many connections of its peer are open as may be"
        return None

    def _look_for_room(self, source: Source, most: int) -> None:
        ledger, intake = self._ledger, source.intake
        ledger.vacated = self._announce
        if ledger.connections() < most:
            ledger.vacated = None
            return
        if self._sheds:
            if not is_readable(source):  # shed a connection only when a new client waits
                ledger.vacated = None
                raise BlockingIOError
            intake.parked_one = self._announce
            idle = intake.longest()
            if idle is not None:
                intake.parked_one = None
                idle.evict("closed while idle, to make room for another connection")
                intake.again(idle)  # closes it as a unit of work, because that may take a while
        raise NoRoomError(self._counted)

    def _announce(self) -> None:
        """Have the taking thread resume all sources. From any thread."""
        self._sources[0].intake.call_soon(self._resume)

    def _resume(self) -> None:
        """Resume all sources. Only in the taking thread."""
        self._sources[0].intake.resume(self._sources)


def _is_stranger(request: Request, users: frozenset[int]) -> bool:
    """Return whether it comes from a Unix peer that is not, or cannot be identified as, one of the users."""
    sock = request[1] if isinstance(request, tuple) else request
    if getattr(sock, "family", None) != _AF_UNIX:
        return False
    try:
        return peer_credentials(sock).uid not in users
    except OSError:  # always for datagrams
        return True


# --- peers -----------------------------------------------------------------------------------------------------------


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
        """Return whether this peer has reached its limit."""
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
        """Stop counting a connection."""
        with self._lock:
            peer = self._entries.pop(entry, None)
            if peer is not None:
                self._counts[peer] -= 1
                if not self._counts[peer]:
                    del self._counts[peer]

    def _peer(self, client_address: Address) -> tuple[int, int] | None:
        who = number(client_address)
        return who and (who[0], who[1] >> self._cut[who[0]])


# --- chance ----------------------------------------------------------------------------------------------------------


class Chance:
    """Refuses a growing share of connections beyond `start`, and all at `full`. Source: sshd_config(5), MaxStartups."""

    def __init__(self, start: float, full: float, draw: Callable[[], float] | None) -> None:
        if draw is None:
            import random  # noqa: PLC0415 - only for overflow="early"

            draw = random.random
        self._start, self._width, self._draw = start, full - start, draw

    def is_against(self, count: int) -> bool:
        """Return whether to refuse one more connection when `count` are open."""
        return count > self._start and self._draw() * self._width < count - self._start


# --- descriptors -----------------------------------------------------------------------------------------------------


def fitted(limits: Limits, others: int) -> Limits:
    """Return the limits with `max_connections` lowered, if necessary, to what this process can have open besides `others` descriptors.

    Raises the soft limit of open files as far as needed and the hard limit allows. Source: getrlimit(2), RLIMIT_NOFILE.
    """
    try:
        import resource  # noqa: PLC0415 - missing on Windows, which has no such limit
    except ImportError:
        return limits
    if limits.max_connections is None:
        return limits
    need = limits.max_connections + others + MARGIN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, need):
        return limits
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if _is_enough(hard, need) else hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, need):
        return limits
    most = max(1, soft - others - MARGIN)
    log.warning(
        "this process may have %d files open, and max_connections=%d needs %d: no more than %d connections are accepted at a time; "
        "raise the limit (ulimit -n), or lower max_connections",
        soft,
        limits.max_connections,
        need,
        most,
    )
    return attrs.evolve(limits, max_connections=min(most, limits.max_connections))


def _is_enough(limit: int, need: int) -> bool:
    return limit < 0 or limit >= need  # RLIM_INFINITY is -1 here


# --- rate ------------------------------------------------------------------------------------------------------------


class Bucket:
    """A token bucket that gains `rate` tokens a second, up to `burst` (None: one second's worth). Not thread-safe."""

    def __init__(self, rate: float, burst: int | None, clock: Clock) -> None:
        self._rate = rate
        self._burst = float(max(1, math.ceil(rate)) if burst is None else burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()

    def due(self) -> float:
        """Return the seconds until a token is available; 0.0 if one is."""
        if self._tokens >= 1.0:
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def take(self) -> None:
        """Take a token; call it only after `due` has returned 0.0."""
        self._tokens -= 1.0
