"""Who is let in: what a server asks before it accepts, and what it asks about whom it has accepted. Made of `Limits` for one run."""

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
"""Descriptors that are left to the program: standard streams, the loop's own, logs, modules that are imported late."""

_V4_MAPPED = bytes(10) + b"\xff\xff"

_AF_UNIX = getattr(socket, "AF_UNIX", -1)

V4_BITS, V6_BITS = 32, 128


class Admission:
    """Asked by the sources of one intake, in the thread that takes.

    The cap is hard because permission comes before the accept: one thread at a time takes, and what it accepts is in the books
    before it asks again. So the books may have fewer connections by then, but never more. Beyond the cap all sources of
    connections are suspended, together, and whoever makes room has them resumed. That is not missed, because

    - whoever takes leaves word in the books (`vacated`) *before* it counts under their lock, and whoever settles a request
      looks for that word *after* it has taken the request out. If the count still has the request, that was taken out after the
      count, hence after the word was left, and is announced.
    - announcing takes the word away, and always ends with all sources resumed, by the thread that takes; so a word that is taken
      away late, by somebody who read it long ago, does not leave anyone suspended.

    To shed, the same goes for conversations that become idle: the word is left with the intake (`parked_one`) before it is asked
    for one, and whoever parks looks for the word after it has parked.
    """

    def __init__(self, limits: Limits, ledger: Ledger, sources: Sequence[Source], draw: Callable[[], float] | None = None) -> None:
        """Begin.

        draw: returns a number from 0.0 to less than 1.0, each as likely as any other; None: `random.random`.
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
        if limits.max_per_peer is not None and ledger.peers is None:  # else it is that of a run before this one
            ledger.peers = Peers(limits.max_per_peer, limits.v4_prefix, limits.v6_prefix)
        self._peers: Peers | None = ledger.peers

    @staticmethod
    def is_needed(limits: Limits, *, counted: bool) -> bool:
        """Return whether there is anything to ask, for a source of connections or for another one."""
        of_connections = counted and (limits.max_connections is not None or limits.max_per_peer is not None)
        return of_connections or limits.rate is not None or bool(limits.allow or limits.deny or limits.allow_users)

    def permit(self, source: Source) -> None:
        """Ask before an accept. Raises: NoRoomError for those who have to wait; BlockingIOError when nobody does."""
        if self._most is not None and len(self._open) >= self._most and source.counted and not self._rejects:
            self._look_for_room(source, self._most)
        if self._bucket is not None:
            seconds = self._bucket.due()
            if seconds > 0:
                source.intake.call_later(seconds, self._resume)
                raise NoRoomError(self._sources)

    def objection(self, request: Request, client_address: Address) -> str | None:
        """Ask about one that was accepted: return why it has to be turned away, or None. Takes its token, if there is a rate."""
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
            if not is_readable(source):  # nobody has to go before another one comes
                ledger.vacated = None
                raise BlockingIOError
            intake.parked_one = self._announce
            idle = intake.longest()
            if idle is not None:
                intake.parked_one = None
                idle.evict("closed while idle, to make room for another connection")
                intake.again(idle)  # which closes it, as a unit of work: that may take its time
        raise NoRoomError(self._counted)

    def _announce(self) -> None:
        """In any thread."""
        self._sources[0].intake.call_soon(self._resume)

    def _resume(self) -> None:
        """In the thread that takes: have every source ask again."""
        self._sources[0].intake.resume(self._sources)


def _is_stranger(request: Request, users: frozenset[int]) -> bool:
    """Return whether it is a Unix peer's, and that none of the users, or not known to be one."""
    sock = request[1] if isinstance(request, tuple) else request
    if getattr(sock, "family", None) != _AF_UNIX:
        return False
    try:
        return peer_credentials(sock).uid not in users
    except OSError:  # as for every datagram
        return True


# --- peers -----------------------------------------------------------------------------------------------------------


def number(client_address: Address) -> tuple[int, int] | None:
    """Return how many bits an address has, and the number they make; None for one that is no internet address."""
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
    """Some networks; a number of `number` is in them or not."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: list[tuple[int, int, int]] = []
        for text in texts:
            from ipaddress import ip_network  # noqa: PLC0415 - for those who name any

            network = ip_network(text)
            self._known.append((network.max_prefixlen, int(network.netmask), int(network.network_address)))

    def __bool__(self) -> bool:
        return bool(self._known)

    def __contains__(self, who: tuple[int, int]) -> bool:
        bits, value = who
        return any(bits == each and value & mask == network for each, mask, network in self._known)


class Peers:
    """How many connections each peer has open. It knows no peer that has none, so it is never larger than the books are.

    The books call `enter` and `leave`, in any thread, with every request that is opened and settled there.
    """

    def __init__(self, most: int, v4_prefix: int, v6_prefix: int) -> None:
        self._most = most
        self._cut = {V4_BITS: V4_BITS - v4_prefix, V6_BITS: V6_BITS - v6_prefix}
        self._counts: dict[tuple[int, int], int] = {}
        self._entries: dict[Entry, tuple[int, int]] = {}  # a layer may have given the entry another address by the time it leaves
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def is_full(self, client_address: Address) -> bool:
        """Return whether this peer has as many as it may."""
        peer = self._peer(client_address)
        return peer is not None and self._counts.get(peer, 0) >= self._most

    def enter(self, entry: Entry) -> None:
        """Count a connection; a datagram is none."""
        peer = None if isinstance(entry.request, tuple) else self._peer(entry.client_address)
        if peer is not None:
            with self._lock:
                self._entries[entry] = peer
                self._counts[peer] = self._counts.get(peer, 0) + 1

    def leave(self, entry: Entry) -> None:
        """Count it no more."""
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
    """Turns ever more away from `start` on, and everybody at `full`. Source: sshd_config(5), MaxStartups."""

    def __init__(self, start: float, full: float, draw: Callable[[], float] | None) -> None:
        if draw is None:
            import random  # noqa: PLC0415 - for those who leave something to chance

            draw = random.random
        self._start, self._width, self._draw = start, full - start, draw

    def is_against(self, count: int) -> bool:
        """Return whether, with so many there, one more is turned away."""
        return count > self._start and self._draw() * self._width < count - self._start


# --- descriptors -----------------------------------------------------------------------------------------------------


def fitted(limits: Limits, others: int) -> Limits:
    """Return the limits with as many connections as this process can have open, besides so many other descriptors.

    The soft limit of open files is raised as far as that needs, and the hard one allows. Source: getrlimit(2), RLIMIT_NOFILE.
    """
    try:
        import resource  # noqa: PLC0415 - not on Windows, which has no such limit
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
    """Tokens, of which there are `rate` more each second, up to `burst`. For one thread."""

    def __init__(self, rate: float, burst: int | None, clock: Clock) -> None:
        self._rate = rate
        self._burst = float(max(1, math.ceil(rate)) if burst is None else burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()

    def due(self) -> float:
        """Return the seconds until there is a token; 0.0 if there is one."""
        if self._tokens >= 1.0:
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def take(self) -> None:
        """Take one, as `due` has said that there is."""
        self._tokens -= 1.0
