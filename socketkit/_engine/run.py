"""One run of a server, from its first request to the report of its drain.

This module drives the serving loop; the server's template methods process each request.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from socketkit._engine.connection import GOODBYE
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import NOBODY, Entry, Ledger
from socketkit._engine.parking import FINE_GRAIN
from socketkit._system.forking import forks
from socketkit._system.logs import Log
from socketkit._system.threads import BackgroundThread, aside
from socketkit.seams import Listener, State
from socketkit.seams.stats import DrainReport

if TYPE_CHECKING:
    from socketkit._engine.ledger import Observers
    from socketkit._engine.work import StartedDispatcher

log = Log("socketkit.serving")

WAIT_SLICE = 0.1
"""Seconds between a drain's checks for a shortened deadline."""

AFTER_FORCE = 0.5
"""Seconds that handlers get to return from blocking calls once their sockets are shut down."""


class Run:
    """One run of one server: the `socketkit.seams.Serving` of a lifecycle, and the target of `Server.stop`.

    `crank` takes requests until stopped; it opens its intake through `open_intake`. `close_listeners` may be called twice.
    lame_duck: seconds to keep serving after a stop request. patience: seconds that handlers may then take; None: no limit.
    """

    def __init__(  # noqa: PLR0913 - it connects the parts of a server, each by name
        self,
        ledger: Ledger,
        observers: Observers,
        server: object,
        *,
        live: Callable[[], StartedDispatcher | None],
        crank: Callable[[Run], None],
        close_listeners: Callable[..., None],
        opened: Callable[[Intake], None] = lambda _intake: None,
        lame_duck: float = 0.0,
        patience: float | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._observers = observers
        self._server = server
        self._live = live
        self._crank = crank
        self._close_listeners = close_listeners
        self._opened = opened
        self._lame_duck = lame_duck
        self._patience = patience
        self._lame_until: float | None = None  # after a stop request with a lame duck: when the run will stop
        self._handed_over = False
        self._at_end: list[Callable[[], object]] = []
        self._on_ready: list[tuple[Callable[[], None], float | None]] = []
        self._intake: Intake | None = None
        self._sources: Sequence[Any] = ()
        self._before: Run | None = None
        self._last: Intake | None = None  # the last round's intake, while that is served
        self._asked = math.inf  # when stop was requested
        self._minder: BackgroundThread | None = None
        self._draining = threading.Event()
        self._deadline: float | None = None  # set by stop(drain): when the drain ends at the latest, whatever its own limit
        self.ready = False  # requests are taken, and stop was not requested
        self.stopping = False
        self.drained = False  # whether its live dispatcher was waited for and closed
        self._cut = 0  # requests that were forced to end before the final wait
        self._settled = 0  # requests already settled when stop was requested
        self.state = State.RUNNING
        self.thread = threading.get_ident()
        self._behind = forks.behind
        self.started = threading.Event()
        self.done = threading.Event()
        self.report: DrainReport | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Take requests until stopped."""
        self.thread = threading.get_ident()
        self._observers.tell("server_started", self._server)
        if not self.stopping:
            self._crank(self)

    def open_intake(self, sources: Callable[[], Sequence[Any]], selector: Callable[[], Any] | None = None) -> Intake:
        """Return a new intake of these sources, which `stop` can stop; in the last round, return its intake. Owner: the caller.

        selector: creates the selector to use; None: the platform's best.
        """
        if self._last is not None:
            return self._last
        self._sources = sources()
        intake = self._intake = Intake(self._sources, selector and selector(), self._clock)
        for source in self._sources:
            source.intake = intake
        if self.stopping:  # stop may have been requested before the intake existed
            intake.stop()
        before, self._before = self._before, None
        if before is not None:
            for connection in before.leftover():
                connection.move(intake)
        self._opened(intake)
        if self._sources:
            self.be_ready()
        return intake

    def on_ready(self, callback: Callable[[], None], every: float | None = None) -> None:
        """Call `callback` in the thread that takes requests, once the run is ready; then again `every` seconds, None: once only."""
        self._on_ready.append((callback, every))

    def be_ready(self) -> None:
        """Mark the run as ready: requests are taken, by this process or by its first worker process."""
        intake = self._intake
        if self.started.is_set() or self.stopping or intake is None:
            return
        self.ready = True
        for callback, every in self._on_ready:
            intake.call_soon(callback)
            if every is not None:
                intake.call_soon(partial(keep_calling, intake, callback, every))
        self.started.set()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` after `seconds`. Only for the thread that takes requests."""
        if self._intake is not None:
            self._intake.call_later(seconds, callback)

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a copy, forked by the program, of the process that serves: nothing in it can end the run."""
        return self._behind != forks.behind

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have `end` call `callback`."""
        self._at_end.append(callback)

    def end(self) -> None:
        """Release everything that belongs to this run only."""
        self._dismiss_minder()
        while self._at_end:
            self._at_end.pop()()

    def branch(self, ledger: Ledger, opened: Callable[[Intake], None]) -> Run:
        """In a forked child: close the parent's descriptors and return the child's own run. `opened` is called with its intake."""
        self.forget()
        return Run(ledger, NOBODY, self._server, live=self._live, crank=self._crank, close_listeners=self._close_listeners, opened=opened)

    def stop(self, drain: float | None = None) -> None:
        """Request the end of `run`, or shorten the drain to `drain` seconds. Does not block; with 0 it also forces running requests to end.

        With 0 this also wakes handlers that block the serving thread itself, which nothing else could.
        """
        if drain is not None:
            deadline = self._clock() + drain
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        if drain == 0:
            self._end()
            shut_down(self._ledger.active())
        elif self.ready and self._lame_duck:
            self._lame_until = self._clock() + self._lame_duck
            if self._intake is not None:
                self._intake.lame = True
            aside(self._be_lame)
        elif not self._is_lame and (drain is not None or not self.stopping):
            self._end()
        self.ready = False

    def hand_over(self) -> None:
        """Take nothing new, hand out what was accepted, and end `run`; requests queued in the kernel are left to other processes."""
        self.ready, self._handed_over = False, True
        self._mark_end()
        if self._intake is not None:
            self._intake.retire()

    @property
    def _is_lame(self) -> bool:
        return self._lame_until is not None and not self.stopping

    def _be_lame(self) -> None:
        """Keep serving until the lame duck ends, or an earlier drain deadline; then end."""
        while self._is_lame:
            left = self._left(self._lame_until)
            if left is None or left <= 0:
                self._end()
            else:
                self.done.wait(min(left, WAIT_SLICE))

    def _end(self) -> None:
        self.ready = False
        self._mark_end()
        end = self._asked + self._patience if self._patience is not None else None
        if self._minder is None and self._is_inline() and self._left(end) is not None:
            with contextlib.suppress(RuntimeError):  # no thread available
                self._minder = aside(partial(self._mind, end))
        intake = self._intake
        if intake is not None:
            intake.stop()  # only after the minder is set, or the drain would not dismiss it

    def _is_inline(self) -> bool:
        live = self._live()
        return live is not None and live.inline

    def _mind(self, end: float | None) -> None:
        """Make sure that the drain begins by `end`, even if a handler blocks the serving thread."""
        if self._is_due(end, self._draining):
            self._cut_here()
            if not self._draining.wait(AFTER_FORCE):
                for stuck in self._ledger.stuck():
                    log.warning("a handler goes on after the deadline, and the server with it: %s\n%s", stuck.peer, stuck.stack)

    def _dismiss_minder(self) -> None:
        self._draining.set()
        if self._minder is not None:
            self._minder.finish()

    def _cut_here(self) -> None:
        """Wake the handler that runs in the serving thread, if any."""
        here = [entry for entry in self._ledger.active() if entry.thread == self.thread]
        self._cut += len(here)
        shut_down(here)

    def forget(self) -> None:
        """In a forked child: close this process's copies of the selector and the wake-up descriptor."""
        if self._intake is not None:
            self._intake.close()

    def inherit(self, before: Run | None) -> None:
        """Also serve the connections that an earlier, undrained run left parked."""
        self._before = before

    def leftover(self) -> list[Any]:
        """Remove and return parked connections so that the next run can adopt them."""
        before, self._before = self._before, None
        older = [] if before is None else before.leftover()  # not adopted: this run opened no intake
        return older if self._intake is None else [*older, *self._intake.waiting(), *self._intake.parked()]

    def abandon(self) -> None:
        """End parked connections, because no run follows this one."""
        for connection in self.leftover():
            connection.abandon()

    def drain(self, seconds: float | None, *, queue: bool = True) -> DrainReport:
        """Serve waiting requests, close the listeners, let running requests finish, force the rest, release everything."""
        self.state, self.ready = State.DRAINING, False
        self._dismiss_minder()
        self._mark_end()
        self._observers.tell("server_stopping", self._server)
        live = self._live()
        end = None if seconds is None else self._asked + seconds
        try:
            self._serve_last_round(end, queue=queue and not self._handed_over)
            ended = self._wait(live, end)
            finished = self._ledger.settled - self._settled - self._cut
            late = 0 if ended else self._ledger.stats().active
            if not ended:
                self._force(live, self._ledger.active())
            stuck = self._ledger.stuck() if late else ()
        finally:
            self.drained = True
            self._close_listeners()
            if live is not None:
                live.close()
        self.report = DrainReport(finished, self._cut + late - len(stuck), stuck)
        if self._cut or late:
            log.warning("stopped at the deadline: %s", self.report)
        return self.report

    def _serve_last_round(self, end: float | None, *, queue: bool) -> None:
        """Serve requests that arrived before stop, accepted or queued in the kernel; close the listeners and idle connections."""
        if self._deadline is not None and self._deadline <= self._clock():
            queue = False
        with self._open_last() as last:
            before, self._intake = self._intake, last
            for source in self._sources:
                source.intake = last  # before the old intake is emptied: a thread that cannot park there then finds this one
            units = self._queued() if queue else []
            self._close_listeners(streams_only=True)
            if before is not None:
                units = [*before.waiting(), *self._move(before.parked(), last, end), *units]
            last.hand_out(units)
            if last.due() is not None or self._conversations_go_on():
                last.retire(GOODBYE + 2 * FINE_GRAIN, self._conversations_go_on)
                self._hand_out(last, end)
            for connection in last.parked():
                connection.abandon()
            for unit in last.waiting():
                self._cut += 1
                unit.refuse("the server stopped before it was run")

    def _conversations_go_on(self) -> bool:
        """Return whether conversations remain, either parked or running and likely to be parked."""
        return any(getattr(entry, "begun", False) for entry in self._ledger.active())

    def _queued(self) -> list[Any]:
        """Accept and return the requests that the kernel has queued."""
        live = self._live()
        unshare = None if live is None else live.unshare
        if unshare is not None:
            unshare()
        return [unit for source in self._sources for unit in source.queued()]

    def _move(self, parked: Sequence[Any], last: Intake, end: float | None) -> list[Any]:
        """Return the connections that can be served now, move those whose client is likely to send a request, and end the others."""
        left, ready = self._left(end), []
        for connection in parked:
            if connection.is_readable():
                ready.append(connection)
            elif not connection.begun or (connection.is_owed_goodbye(self._clock()) and (left is None or left > 0)):
                connection.move(last)
            else:
                connection.abandon()
        return ready

    def _open_last(self) -> Intake:
        """Return an intake without sources. If no descriptor is left for it, close the listeners to make room."""
        try:
            last = Intake((), clock=self._clock)
        except OSError as error:
            log.warning("what the kernel has queued is lost: %s", error)
            self._close_listeners()
            last = Intake((), clock=self._clock)
        last.ending = True
        return last

    def _hand_out(self, last: Intake, end: float | None) -> None:
        """Have the dispatcher run the units of the last intake, until `end` at the latest."""
        self._last = last
        live = self._live()
        try:
            if (live is not None and live.drive is not None) or self._is_inline():
                with self._watched(end, last):
                    self._crank(self)
            else:  # this thread stays at the intake, and a process that forks must not start threads
                left = self._left(end)
                if left is not None:
                    last.call_later(max(left, 0.0), last.stop)
                self._crank(self)
        finally:
            self._last = None

    @contextlib.contextmanager
    def _watched(self, end: float | None, last: Intake) -> Iterator[None]:
        """Stop the intake at `end`, or at an earlier deadline set by `stop`: all taking threads may be busy."""
        over = threading.Event()

        def watch() -> None:
            if not over.wait(WAIT_SLICE) and self._is_due(end, over):  # always allow one slice for units that are ready
                last.stop()
                self._cut_here()

        watcher = BackgroundThread(watch, "socketkit-drain")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _is_due(self, end: float | None, over: threading.Event) -> bool:
        """Wait until `end`, or an earlier deadline set by `stop`; return False as soon as `over` is set before that."""
        while not over.is_set():
            left = self._left(end)
            if left is not None and left <= 0:
                return True
            over.wait(WAIT_SLICE if left is None else min(left, WAIT_SLICE))
        return False

    def _left(self, end: float | None) -> float | None:
        """Return the seconds until `end`, or an earlier deadline set by `stop`; None if there is neither."""
        ends = [moment for moment in (end, self._deadline) if moment is not None]
        return min(ends) - self._clock() if ends else None

    def _mark_end(self) -> None:
        if not self.stopping:
            self._settled = self._ledger.settled
            self._asked = self._clock()
            self.stopping = True

    def _wait(self, live: StartedDispatcher | None, end: float | None) -> bool:
        """Wait for the dispatcher until `end`, or an earlier deadline set by `stop`; return whether it has finished."""
        while live is not None:
            left = self._left(end)
            if live.wait(WAIT_SLICE if left is None else max(0.0, min(left, WAIT_SLICE))):
                break
            if left is not None and left <= 0:
                return False
        return True

    @staticmethod
    def _force(live: StartedDispatcher | None, late: Sequence[Any]) -> None:
        """Shut down the sockets of requests that still run, so that blocked handlers wake, and wait briefly for them."""
        shut_down(late)
        if live is not None:
            if live.force is not None:
                live.force()
            live.wait(AFTER_FORCE)


def feed(intake: Intake, live: Any, turned: Callable[[], object] | None, pace: float | None) -> None:
    """Take and run units in this thread until the intake is stopped: the loop of every simple dispatcher.

    live: the dispatcher; its `attach`, if any, gets the intake first and None at the end. turned: called after every turn, and at
    least every `pace` seconds.
    """
    attach = None if live is None else live.attach
    with intake.woken_by_signals():
        if attach is None:
            _feed(intake, turned, pace)
            return
        attach(intake)
        try:
            _feed(intake, turned, pace)
        finally:
            attach(None)


def _feed(intake: Intake, turned: Callable[[], object] | None, pace: float | None) -> None:
    if turned is None:
        while not intake.stopped:
            unit = intake.take()
            if unit is not None:
                unit()
        return
    while not intake.stopped:
        unit = intake.take(pace)
        if unit is not None:
            unit()
        elif intake.stopped:
            return
        turned()


def keep_calling(intake: Intake, callback: Callable[[], object], pace: float) -> None:
    """Call `callback` every `pace` seconds from within `intake.take`: `turned`, for dispatchers that drive."""

    def again() -> None:
        callback()
        intake.call_later(pace, again)

    intake.call_later(pace, again)


def shut_down(entries: Sequence[Entry]) -> None:
    """Shut down the requests' sockets in both directions: reads then return end of stream, writes raise."""
    for entry in entries:
        with contextlib.suppress(Exception):  # a datagram has no socket; a connection may be closed by now
            entry.request.shutdown(socket.SHUT_RDWR)


def close_all(listeners: Sequence[Listener]) -> None:
    """Close every listener, even if one of them raises; raise the error at the end."""
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.close)
