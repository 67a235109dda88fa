"""The ledger, which records each accepted request exactly once, from acceptance to its one outcome; and the observers.

`accepted == active + sum(outcomes)` holds on every read, because `accepted` is computed as that sum.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from socketkit._system.logs import Log
from socketkit._system.sockets import is_writable
from socketkit.errors import StalledError
from socketkit.seams import EVENTS, Address, Clock, Layer, Request
from socketkit.seams.stats import Stats, Stuck

log = Log("socketkit.stats")

TIMED_OUT = "timed out"

OUTCOMES = ("finished", "failed", "aborted", "refused", "died", TIMED_OUT)
"""How a request can end: see `Ledger.settle`."""


class Entry:
    """One request in progress."""

    __slots__ = ("began", "client_address", "elsewhere", "heard", "layers", "outcome", "request", "since", "thread")

    def __init__(self, request: Request, client_address: Address, since: float) -> None:
        self.request = request
        self.client_address = client_address
        self.since = since  # when it was accepted
        self.began = since  # when the request, or a conversation's current request, began; infinity between requests
        self.heard = False  # whether its peer is known to have sent something
        self.thread: int | None = None  # the identifier of the thread its handler runs in
        self.outcome = "finished"
        self.elsewhere = False  # handed to a dispatcher, which will settle it
        self.layers: tuple[Layer, ...] = ()  # layers it has yet to pass through

    @property
    def is_cut(self) -> bool:
        """Whether it has been recorded as timed out."""
        return self.outcome == TIMED_OUT


class Observers:
    """The observers of one server, sorted by event. An observer's error is logged once and never reaches the server."""

    def __init__(self, observers: Iterable[object] = ()) -> None:
        self._listeners: dict[str, tuple[Callable[..., object], ...]] = {}
        self._complained: set[Callable[..., object]] = set()
        everyone = tuple(observers)
        for event in EVENTS:
            listeners = tuple(method for method in (getattr(each, event, None) for each in everyone) if callable(method))
            if listeners:
                self._listeners[event] = listeners

    def wants(self, event: str) -> bool:
        """Return whether any observer listens for the event."""
        return event in self._listeners

    def tell(self, event: str, *facts: object) -> None:
        """Call every observer of the event with `facts`."""
        for listener in self._listeners.get(event, ()):
            try:
                listener(*facts)
            except Exception:
                if listener not in self._complained:
                    self._complained.add(listener)
                    log.exception("observer %r failed on %s; further failures of it are not logged", listener, event)


NOBODY = Observers()


class Ledger:
    """The requests of one server. Thread-safe."""

    def __init__(self, server: object = None, observers: Observers = NOBODY, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._server = server
        self._observers = observers
        self._observed = any(map(observers.wants, ("request_accepted", "request_finished", "request_failed", "request_refused")))
        self._lock = threading.Lock()
        self._active: dict[int, Entry] = {}
        self.in_work: Mapping[int, Entry] = self._active  # for frequent lock-free counting
        self.mixed = True  # whether there may be datagrams among them
        self.peers: Any = None  # the `socketkit._engine.admission.Peers` that counts connections per peer, if any
        self.vacated: Callable[[], None] | None = None  # called once, when a connection is settled: there may be room for another
        self._outcomes: dict[str, int] = {}
        self._settled = 0
        self._branches: list[Tally] = []

    @property
    def settled(self) -> int:
        """Number of settled requests; read without a lock, so safe in a signal handler."""
        return self._settled + sum(sum(tally.stats().outcomes.values()) for tally in tuple(self._branches))

    def tell(self, event: str, *facts: object) -> None:
        """Tell the observers of an event that does not concern a request."""
        self._observers.tell(event, self._server, *facts)

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
            self._observers.tell("request_accepted", self._server, entry.request, entry.client_address)

    def find(self, request: Request) -> Entry | None:
        """Return the open entry of the request, if it has one."""
        return self._active.get(id(request))

    def replace(self, request: Request, wrapped: Request, client_address: Address) -> None:
        """Move the entry of `request` to `wrapped`, which a layer made from it."""
        with self._lock:
            entry = self._active.pop(id(request), None)
            if entry is not None:
                entry.request, entry.client_address, entry.layers = wrapped, client_address, entry.layers[1:]
                self._active[id(wrapped)] = entry

    def fail(self, request: Request, error: BaseException) -> None:
        """Record that the request's handler, or a hook, raised `error`.

        The outcome is "aborted" if the peer disconnected, "timed out" if it stopped reading, else "failed". A request that was
        already cut stays "timed out".
        """
        entry = self.find(request)
        if entry is None or entry.is_cut:
            return
        entry.outcome = "aborted" if isinstance(error, ConnectionError) else TIMED_OUT if _is_stalled(request, error) else "failed"
        if self._observed:
            self._observers.tell("request_failed", self._server, entry.client_address, error)

    def cut(self, entry: Entry, reason: str) -> None:
        """Record that the request timed out."""
        entry.outcome = TIMED_OUT
        if self._observed:
            self._observers.tell("request_failed", self._server, entry.client_address, TimeoutError(reason))

    def refuse(self, request: Request, reason: str) -> None:
        """Record that the request was refused before a handler saw it."""
        entry = self.find(request)
        if entry is not None:
            entry.outcome = "refused"
            if self._observed:
                self._observers.tell("request_refused", self._server, entry.client_address, reason)

    def settle(self, request: Request, outcome: str | None = None) -> None:
        """Close the request's entry with an outcome, by default the one recorded in it. A second call does nothing.

        Outcomes: finished, failed, aborted (the peer disconnected), refused (by a limit or verification, or for lack of a thread or
        process), died (its process ended without reporting), timed out (a deadline passed).
        """
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
        if self._observed and outcome == "finished":
            self._observers.tell("request_finished", self._server, entry.client_address, self.clock() - entry.since)

    def stats(self) -> Stats:
        """Return a consistent snapshot, including the branches' counts."""
        with self._lock:
            total = Stats(len(self._active), dict(self._outcomes))
            for tally in self._branches:
                total = _sum(total, tally.stats())
        return total

    def open_branch(self) -> Tally:
        """Return the counters for a process that is about to be forked; this ledger includes them from now on."""
        tally = Tally()
        with self._lock:
            self._branches.append(tally)
        return tally

    def in_branch(self, tally: Tally, settled: Callable[[int], None] | None) -> BranchLedger:
        """Return a new ledger for the forked process, free of its parent's locks and requests."""
        return BranchLedger(self._server, self._observers, tally, settled, self.clock)

    def close_branch(self, tally: Tally) -> None:
        """Add the counts of a process that has ended. Requests it still had in progress count as "died"."""
        with self._lock:
            self._branches.remove(tally)
            last = tally.stats()
            died = Stats(0, {"died": last.active} if last.active else {})
            self._outcomes = dict(_sum(_sum(Stats(0, self._outcomes), died), Stats(0, last.outcomes)).outcomes)
            self._settled += last.accepted

    def connections(self) -> int:
        """Return the number of connections in progress, without datagrams."""
        with self._lock:  # otherwise an entry that `replace` is moving might be miscounted
            return sum(not isinstance(entry.request, tuple) for entry in list(self._active.values())) if self.mixed else len(self._active)

    def active(self) -> list[Entry]:
        """Return the requests in progress."""
        return list(self._active.values())

    def runs_in(self, thread: int) -> bool:
        """Return whether that thread is running a handler of this server."""
        return any(entry.thread == thread for entry in self.active())

    def stuck(self) -> tuple[Stuck, ...]:
        """Return the requests in progress, with their age and the stack of their thread."""
        now, frames = self.clock(), sys._current_frames()  # noqa: SLF001 - the only way to see other threads' stacks
        return tuple(Stuck(entry.client_address, now - entry.since, _stack(frames.get(entry.thread or 0))) for entry in self.active())


class Tally:
    """Counters in memory shared by two processes: the forked one writes them, its parent reads them, even after the child has died.

    Each counter is one aligned word, so a reader never sees a partial write. The memory is freed with the last reference to the tally.
    """

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # requests accepted, then one counter per outcome

    def accept(self) -> None:
        """Count one accepted request."""
        self._counts[0] += 1

    def settle(self, outcome: str) -> None:
        """Count one settled request; an unknown outcome counts as failed."""
        self._counts[1 + OUTCOMES.index(outcome if outcome in OUTCOMES else "failed")] += 1

    def stats(self) -> Stats:
        """Return a snapshot."""
        outcomes = {outcome: count for outcome, count in zip(OUTCOMES, self._counts[1:], strict=False) if count}
        return Stats(self._counts[0] - sum(outcomes.values()), outcomes)  # accepted is read last, so it is never too small

    def detach(self) -> None:
        """Switch to a private copy: for a child of the writing process, which must not write to the shared counters."""
        self._counts = memoryview(bytearray(self._counts)).cast("Q")


class BranchLedger(Ledger):
    """The ledger of a process that serves on behalf of its parent, which reads the counts in `tally`.

    settled: called after each outcome with the number of requests settled so far, in the thread that ran the request.
    """

    def __init__(
        self,
        server: object,
        observers: Observers,
        tally: Tally,
        settled: Callable[[int], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(server, observers, clock)
        self._tally = tally
        self._outcomes = _Counted(tally)
        self._when_settled = settled
        os.register_at_fork(after_in_child=tally.detach)

    def open(self, entry: Entry) -> None:
        """As `Ledger.open`."""
        with self._lock:
            self._tally.accept()
        super().open(entry)

    def settle(self, request: Request, outcome: str | None = None) -> None:
        """As `Ledger.settle`."""
        super().settle(request, outcome)
        if self._when_settled is not None:
            self._when_settled(self._settled)


class _Counted(dict[str, int]):
    """Outcome counts, each only ever incremented by one, mirrored in a tally."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __setitem__(self, outcome: str, count: int) -> None:
        super().__setitem__(outcome, count)
        self._tally.settle(outcome)


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


def _sum(one: Stats, other: Stats) -> Stats:
    outcomes = dict(one.outcomes)
    for outcome, count in other.outcomes.items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    return Stats(one.active + other.active, outcomes)


def _stack(frame: Any) -> str:
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


LEDGER = "_socketkit_ledger"
"""The instance attribute that holds a server's ledger; its name is unlikely to clash with a program's own."""


def books(server: object) -> Ledger:
    """Return the server's ledger, created on first use: some programs never call a server's constructor."""
    attributes = vars(server)
    ledger: Ledger | None = attributes.get(LEDGER)
    if ledger is None:
        ledger = attributes.setdefault(LEDGER, Ledger(server))  # setdefault is atomic: two threads get the same one
    return ledger
