"""The books: every request that was accepted, exactly once, from acceptance to its one outcome; and those who watch.

`accepted == active + sum(outcomes)` whenever it is read, because accepted is not counted but is that sum.
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
    """One request in work."""

    __slots__ = ("began", "client_address", "elsewhere", "heard", "layers", "outcome", "request", "since", "thread")

    def __init__(self, request: Request, client_address: Address, since: float) -> None:
        self.request = request
        self.client_address = client_address
        self.since = since  # when it was accepted
        self.began = since  # when what it works on began: itself, or the present request of a conversation; infinity: it waits for one
        self.heard = False  # whether it is known that its peer has sent something
        self.thread: int | None = None  # the identifier of the thread its handler runs in
        self.outcome = "finished"
        self.elsewhere = False  # handed to a dispatcher, which will account for it
        self.layers: tuple[Layer, ...] = ()  # what it has yet to pass through

    @property
    def is_cut(self) -> bool:
        """Whether its time is over, and it has been told."""
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
        """Return whether anybody observes the event."""
        return event in self._listeners

    def tell(self, event: str, *facts: object) -> None:
        """Call everyone who observes the event."""
        for listener in self._listeners.get(event, ()):
            try:
                listener(*facts)
            except Exception:
                if listener not in self._complained:
                    self._complained.add(listener)
                    log.exception("observer %r failed on %s; further failures of it are not logged", listener, event)


NOBODY = Observers()


class Ledger:
    """The requests of one server. Safe from every thread."""

    def __init__(self, server: object = None, observers: Observers = NOBODY, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._server = server
        self._observers = observers
        self._observed = any(map(observers.wants, ("request_accepted", "request_finished", "request_failed", "request_refused")))
        self._lock = threading.Lock()
        self._active: dict[int, Entry] = {}
        self.in_work: Mapping[int, Entry] = self._active  # for whoever counts them often
        self.mixed = True  # whether there may be datagrams among them
        self.peers: Any = None  # a `socketkit._engine.admission.Peers`, which counts too, if there is one
        self.vacated: Callable[[], None] | None = None  # to be called once, when a connection is settled: there may be room for another
        self._outcomes: dict[str, int] = {}
        self._settled = 0
        self._branches: list[Tally] = []

    @property
    def settled(self) -> int:
        """How many requests have their outcome; read without a lock, so also by a signal handler."""
        return self._settled + sum(sum(tally.stats().outcomes.values()) for tally in tuple(self._branches))

    def tell(self, event: str, *facts: object) -> None:
        """Tell the observers of an event that is not about a request."""
        self._observers.tell(event, self._server, *facts)

    def admit(self, request: Request, client_address: Address) -> Entry:
        """Make the entry of a request that was just accepted."""
        entry = Entry(request, client_address, self.clock())
        self.open(entry)
        return entry

    def open(self, entry: Entry) -> None:
        """Take in the entry of a request that was just accepted."""
        if self.peers is not None:
            self.peers.enter(entry)
        self._active[id(entry.request)] = entry  # one store, hence no lock; the entry keeps the request, and with it the key, alive
        if self._observed:
            self._observers.tell("request_accepted", self._server, entry.request, entry.client_address)

    def find(self, request: Request) -> Entry | None:
        """Return the open entry of the request, if it has one."""
        return self._active.get(id(request))

    def replace(self, request: Request, wrapped: Request, client_address: Address) -> None:
        """Keep the entry of a request under the request that a layer made of it."""
        with self._lock:
            entry = self._active.pop(id(request), None)
            if entry is not None:
                entry.request, entry.client_address, entry.layers = wrapped, client_address, entry.layers[1:]
                self._active[id(wrapped)] = entry

    def fail(self, request: Request, error: BaseException) -> None:
        """Note that the request's handler, or a hook, raised.

        A peer that went away is "aborted", one that took nothing of what it was sent "timed out", all else "failed". For one that
        was cut that is what matters, whatever its handler makes of it.
        """
        entry = self.find(request)
        if entry is None or entry.is_cut:
            return
        entry.outcome = "aborted" if isinstance(error, ConnectionError) else TIMED_OUT if _is_stalled(request, error) else "failed"
        if self._observed:
            self._observers.tell("request_failed", self._server, entry.client_address, error)

    def cut(self, entry: Entry, reason: str) -> None:
        """Note that the request's time is over."""
        entry.outcome = TIMED_OUT
        if self._observed:
            self._observers.tell("request_failed", self._server, entry.client_address, TimeoutError(reason))

    def refuse(self, request: Request, reason: str) -> None:
        """Note that the request was turned away before a handler saw it."""
        entry = self.find(request)
        if entry is not None:
            entry.outcome = "refused"
            if self._observed:
                self._observers.tell("request_refused", self._server, entry.client_address, reason)

    def settle(self, request: Request, outcome: str | None = None) -> None:
        """Close the request's entry with an outcome, by default the one noted in it. The second time does nothing.

        Outcomes: finished, failed, aborted (the peer went away), refused (a limit or verification said no, or nobody to run it), died
        (its process ended without a word), timed out (a deadline was over).
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
        """Return a consistent reading, the branches' counts included."""
        with self._lock:
            total = Stats(len(self._active), dict(self._outcomes))
            for tally in self._branches:
                total = _sum(total, tally.stats())
        return total

    def open_branch(self) -> Tally:
        """Return the counts of a process that is about to be forked; they are part of this ledger's from now on."""
        tally = Tally()
        with self._lock:
            self._branches.append(tally)
        return tally

    def in_branch(self, tally: Tally, settled: Callable[[int], None] | None) -> BranchLedger:
        """Return new books for the process that was forked, which nobody's lock or request of its parent's is in."""
        return BranchLedger(self._server, self._observers, tally, settled, self.clock)

    def close_branch(self, tally: Tally) -> None:
        """Take over the counts of a process that has ended. What it still had in work has died with it."""
        with self._lock:
            self._branches.remove(tally)
            last = tally.stats()
            died = Stats(0, {"died": last.active} if last.active else {})
            self._outcomes = dict(_sum(_sum(Stats(0, self._outcomes), died), Stats(0, last.outcomes)).outcomes)
            self._settled += last.accepted

    def connections(self) -> int:
        """Return how many connections are in work, datagrams left out."""
        with self._lock:  # or one that a layer is replacing might be counted twice
            return sum(not isinstance(entry.request, tuple) for entry in list(self._active.values())) if self.mixed else len(self._active)

    def active(self) -> list[Entry]:
        """Return the requests in work."""
        return list(self._active.values())

    def runs_in(self, thread: int) -> bool:
        """Return whether that thread is inside a handler of this server."""
        return any(entry.thread == thread for entry in self.active())

    def stuck(self) -> tuple[Stuck, ...]:
        """Return what still runs, for how long, and where each thread stands."""
        now, frames = self.clock(), sys._current_frames()  # noqa: SLF001 - the interpreter's own way to see other threads
        return tuple(Stuck(entry.client_address, now - entry.since, _stack(frames.get(entry.thread or 0))) for entry in self.active())


class Tally:
    """Counts in memory that two processes share: one serves and writes, the one that forked it reads, even when the other is dead.

    Each count is one aligned word, so a reader never sees half of it. The memory goes when the last reference to the tally does.
    """

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # requests accepted, then those with each outcome

    def accept(self) -> None:
        """Count one request that was accepted."""
        self._counts[0] += 1

    def settle(self, outcome: str) -> None:
        """Count one request that has its outcome; one with a name of its own passes for failed."""
        self._counts[1 + OUTCOMES.index(outcome if outcome in OUTCOMES else "failed")] += 1

    def stats(self) -> Stats:
        """Return a reading."""
        outcomes = {outcome: count for outcome, count in zip(OUTCOMES, self._counts[1:], strict=False) if count}
        return Stats(self._counts[0] - sum(outcomes.values()), outcomes)  # accepted is read last: it is never too small

    def detach(self) -> None:
        """Go on with a private copy: in a child of the process that writes, which shall not write there too."""
        self._counts = memoryview(bytearray(self._counts)).cast("Q")


class BranchLedger(Ledger):
    """The books of a process that serves for another one, which reads along in `tally`.

    settled: called after each outcome with the number of all so far, in the thread that ran the request.
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
    """Outcomes and their counts, which only ever go up by one, and are counted in a tally too."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __setitem__(self, outcome: str, count: int) -> None:
        super().__setitem__(outcome, count)
        self._tally.settle(outcome)


def _is_stalled(request: Request, error: BaseException) -> bool:
    """Return whether the error is that a peer takes nothing of what it is sent.

    A socket with SO_SNDTIMEO says so by EAGAIN, which means something else in any other place: so look whether it is full.
    """
    if isinstance(error, StalledError):
        return True
    if not isinstance(error, BlockingIOError) or isinstance(request, tuple):
        return False
    try:
        return request.gettimeout() is None and not is_writable(request)
    except (OSError, ValueError, TypeError, AttributeError):  # closed, or no socket
        return False


def _sum(one: Stats, other: Stats) -> Stats:
    outcomes = dict(one.outcomes)
    for outcome, count in other.outcomes.items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    return Stats(one.active + other.active, outcomes)


def _stack(frame: Any) -> str:
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


LEDGER = "_socketkit_ledger"
"""The instance attribute that holds a server's ledger: one that no program's own attribute is likely to be called."""


def books(server: object) -> Ledger:
    """Return the server's ledger, made when first asked for: some programs never call a server's constructor."""
    attributes = vars(server)
    ledger: Ledger | None = attributes.get(LEDGER)
    if ledger is None:
        ledger = attributes.setdefault(LEDGER, Ledger(server))  # setdefault is atomic: two threads get the same one
    return ledger
