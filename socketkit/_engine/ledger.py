"""The ledger, which records each accepted request exactly once, from acceptance to its one outcome.

`accepted == active + sum(outcomes)` holds on every read, because `accepted` is computed as that sum.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping

from socketkit._engine.observers import NOBODY, Observers
from socketkit._engine.tally import TIMED_OUT, Tallies, Tally, stats_of, total
from socketkit._system.logs import Log
from socketkit._system.sockets import has_unread, is_writable, received
from socketkit._system.tls import has_left
from socketkit.errors import StalledError
from socketkit.seams.events import Refusal

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.tally import Reading
    from socketkit.seams import Address, Clock, Layer, Request, ShakesHands, Stats

log = Log("socketkit.limits")

_EVENTS = ("request_accepted", "request_finished", "request_failed", "request_refused", "request_ended")


class Entry:
    """One request in progress."""

    __slots__ = ("began", "client_address", "elsewhere", "heard", "layers", "outcome", "preamble", "request", "since", "thread")

    upgrade: Layer | ShakesHands | None = None
    """The layer that its transport leaves to its handler."""

    def __init__(self, request: Request, client_address: Address, since: float) -> None:
        self.request = request
        self.client_address = client_address
        self.since = since  # when it was accepted
        self.began = since  # when the request, or a conversation's current request, began; infinity between requests
        self.heard = False  # whether its peer is known to have sent something
        self.thread: int | None = None  # the identifier of the thread its handler runs in
        self.outcome = "finished"
        self.elsewhere = False  # handed to a dispatcher, which will settle it
        self.layers: tuple[Layer | ShakesHands, ...] = ()  # layers it has yet to pass through
        self.preamble = 0  # bytes that its peer sent to the layers, if the system says

    def begin_after_layers(self, now: float) -> None:
        """Start the clock of the request, and note whether it has begun to arrive.

        If it has not, all that the peer has sent was meant for the layers. With TLS 1.3 a client may send it with its last message of
        the handshake.
        """
        self.began, self.heard = now, has_unread(self.request)
        if not self.heard:
            self.preamble = received(self.request) or 0

    @property
    def is_named(self) -> bool:
        """Whether its client's address is known, and not just that of a proxy."""
        return not any(getattr(layer, "names_client", False) for layer in self.layers)

    @property
    def is_cut(self) -> bool:
        """Whether it has been recorded as timed out."""
        return self.outcome == TIMED_OUT

    @property
    def has_failed(self) -> bool:
        """Whether a failure of it has been recorded: it has failed, timed out, or was aborted."""
        return self.outcome not in {"finished", "refused"}


class Ledger:
    """The requests of one server. Thread-safe."""

    def __init__(self, server: object = None, observers: Observers = NOBODY, clock: Clock = time.monotonic) -> None:
        self.server = server
        self.observers = observers
        self.clock = clock
        self._observed = any(map(observers.wants, _EVENTS))
        self._lock = threading.Lock()
        self._active: dict[int, Entry] = {}
        self.in_work: Mapping[int, Entry] = self._active  # for frequent lock-free counting
        self.mixed = True  # whether there may be datagrams among them
        self.peers: Any = None  # the `socketkit._engine.peers.Peers` that limits peers, if any
        self.label: Callable[[], str] = lambda: "a server"  # what log lines call the server
        self.is_copy = False  # see `become_copy`
        self.vacated: Callable[[], None] | None = None  # called once, when a connection is settled: there may be room for another
        self._outcomes: dict[str, int] = {}
        self._settled = 0
        self.replicas = Tallies()

    @property
    def settled(self) -> int:
        """Number of settled requests; read without a lock, so safe in a signal handler."""
        return self._settled + self.replicas.settled

    def become_copy(self) -> None:
        """In a child forked for a request, which its parent settles too: let go of a lock that another thread held at the fork."""
        self.is_copy = True
        self._lock = threading.Lock()

    def admit(self, request: Request, client_address: Address) -> Entry:
        """Create, open and return the entry of a request that was just accepted."""
        entry = Entry(request, client_address, self.clock())
        self.open(entry)
        return entry

    def open(self, entry: Entry) -> None:
        """Record the entry of a request that was just accepted."""
        if self.peers is not None:
            self.peers.enter(entry)
        self._active[id(entry.request)] = entry  # one store, so no lock; the entry keeps the request alive, and so its id unique
        if self._observed:
            self.observers.tell("request_accepted", self.server, entry.request, entry.client_address)

    def find(self, request: Request) -> Entry | None:
        """Return the open entry of the request, if it has one."""
        return self._active.get(id(request))

    def replace(self, request: Request, wrapped: Request) -> None:
        """Move the entry of `request` to `wrapped`, which a layer made from it."""
        with self._lock:
            entry = self._active.pop(id(request), None)
            if entry is not None:
                entry.request = wrapped
                self._active[id(wrapped)] = entry

    def name(self, entry: Entry) -> None:
        """Apply the limits for peers to a connection, now that a layer has named its client. Raises: TurnedAwayError."""
        if self.peers is not None:
            self.peers.name(entry)

    def fail(self, request: Request, error: BaseException) -> None:
        """Record that the request's handler, or a hook, raised `error`.

        Only the first failure counts: each step that an error passes may record it, and a request that was cut stays "timed out".
        """
        entry = self.find(request)
        if entry is None or entry.has_failed:
            return
        if self._record(entry, outcome_of(request, error)):
            if entry.is_cut:
                self.say_cut(entry, "limits.write_stall", "the client took nothing of what it was sent")
            if self._observed:
                self.observers.tell("request_failed", self.server, entry.client_address, error)

    def cut(self, entry: Entry, limit: str, reason: str) -> None:
        """Record that the request timed out by this limit, unless a failure of it is recorded already."""
        if self._record(entry, TIMED_OUT):
            self.say_cut(entry, f"limits.{limit}", reason)
            if self._observed:
                self.observers.tell("request_failed", self.server, entry.client_address, TimeoutError(reason))

    def say_cut(self, entry: Entry, key: str, reason: str) -> None:
        """Log that a limit has ended the connection. key: that of the limit in the configuration of its server."""
        log.info("%s: cut %s by %s: %s", self.label(), entry.client_address, key, reason, about=key)

    def _record(self, entry: Entry, failure: str) -> bool:
        """Record a failure, unless one is recorded already; return whether it was recorded."""
        with self._lock:  # a deadline may pass just when the handler fails, or another deadline passes
            if entry.has_failed:
                return False
            entry.outcome = failure
        return True

    def refuse(self, request: Request, reason: str) -> None:
        """Record that the request was refused before a handler saw it. Observers hear a reason that is no `Refusal` as one of another kind."""
        entry = self.find(request)
        if entry is not None:
            entry.outcome = "refused"
            if self._observed:
                refusal = reason if isinstance(reason, Refusal) else Refusal(reason)
                self.observers.tell("request_refused", self.server, entry.client_address, refusal)

    def settle(self, request: Request, outcome: str | None = None) -> None:
        """Close the request's entry with one of `OUTCOMES`, by default the one recorded in it. A second call does nothing."""
        with self._lock:
            entry = self._active.pop(id(request), None)
            if entry is None:
                return
            self._settled += 1
            outcome = entry.outcome if outcome is None or entry.is_cut else outcome
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        if self.peers is not None:
            self.peers.leave(entry)
        vacated = self.vacated
        if vacated is not None and not isinstance(entry.request, tuple):
            self.vacated = None
            vacated()
        if self._observed:
            self._tell_end(entry, outcome)

    def _tell_end(self, entry: Entry, outcome: str) -> None:
        seconds = self.clock() - entry.since
        if outcome == "finished":
            self.observers.tell("request_finished", self.server, entry.client_address, seconds)
        if not self.is_copy:
            self.observers.tell("request_ended", self.server, entry.client_address, outcome, seconds)

    def stats(self) -> Stats:
        """Return a consistent snapshot, including the replicas' counts."""
        return stats_of(self.read())

    def read(self) -> Reading:
        """Return the same as `stats`, for code that runs without attrs."""
        with self._lock:
            own = len(self._active), dict(self._outcomes)
        return total(own, self.replicas.read())

    def connections(self) -> int:
        """Return the number of connections in progress, without datagrams."""
        with self._lock:  # otherwise an entry that `replace` is moving might be miscounted
            return sum(not isinstance(entry.request, tuple) for entry in list(self._active.values())) if self.mixed else len(self._active)

    def active(self) -> list[Entry]:
        """Return the requests in progress."""
        return list(self._active.values())


class ReplicaLedger(Ledger):
    """The ledger of a process that serves on behalf of its parent, which reads the counts in `tally`.

    settled: called after each outcome, and after each request of a conversation that `converse` counts, with the number of requests
        served so far, in the thread that ran the request.
    """

    def __init__(self, parent: Ledger, tally: Tally, settled: Callable[[int], None] | None = None) -> None:
        super().__init__(parent.server, parent.observers, parent.clock)
        self.label = parent.label
        self._tally = tally
        self._outcomes = _Mirrored(tally)
        self._when_settled = settled
        os.register_at_fork(after_in_child=tally.detach)

    def open(self, entry: Entry) -> None:
        with self._lock:
            self._tally.accept()
        super().open(entry)

    def settle(self, request: Request, outcome: str | None = None) -> None:
        super().settle(request, outcome)
        self._report()

    def converse(self) -> None:
        """Count one request of a conversation."""
        with self._lock:
            self._tally.converse()
        self._report()

    def _report(self) -> None:
        if self._when_settled is not None:
            self._when_settled(self._tally.served)


class _Mirrored(dict[str, int]):
    """Outcome counts, each only ever incremented by one, mirrored in a tally."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __setitem__(self, outcome: str, count: int) -> None:
        super().__setitem__(outcome, count)
        self._tally.settle(outcome)


def outcome_of(request: Request, error: BaseException) -> str:
    """Return "aborted" if the error means that the peer disconnected, "timed out" if it stopped reading, else "failed"."""
    if has_left(error):
        return "aborted"
    return TIMED_OUT if _is_stalled(request, error) else "failed"


def _is_stalled(request: Request, error: BaseException) -> bool:
    """Return whether the error means that the peer has stopped reading.

    A socket with SO_SNDTIMEO reports this as EAGAIN, which has other causes too, so check that the send buffer is full.
    """
    if isinstance(error, StalledError):
        return True
    if not isinstance(error, BlockingIOError) or isinstance(request, tuple):
        return False
    try:
        return request.gettimeout() is None and not is_writable(request)
    except (OSError, ValueError, TypeError, AttributeError):  # closed, or not a socket
        return False
