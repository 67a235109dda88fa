"""What runs one server: its ledger, its live dispatcher, and its runs, one at a time."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from socketkit._engine.holdup import AFTER_FORCE, break_off, shut_down
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import Entry, Ledger, ReplicaLedger
from socketkit._engine.observers import NOBODY, Observers
from socketkit._engine.request import Requests
from socketkit._engine.run import Phase, Run
from socketkit._engine.sources import RequestSource
from socketkit._engine.stopping import Stopping
from socketkit._engine.tally import Tally
from socketkit._engine.work import StartedDispatcher, Work
from socketkit._system import logs
from socketkit._system.logs import Log
from socketkit._system.timer import TimerThread
from socketkit.errors import AlreadyServingError, IncompatibleError

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit.seams import Clock, Dispatcher, DrainReport, Lifecycle, PackedReplica, Request
    from socketkit.seams.limits import Limits

log = Log("socketkit.serving")

AFTER_INTERRUPT = 1.0
"""Seconds that running requests may take after Ctrl-C before anything is said or done about them."""


class Engine(Requests, ABC):
    """The engine of a server. A subclass for each kind of server defines what the server does its own way: the abstract methods.

    Attributes:
        usual_dispatcher: makes the dispatcher of a replica whose parent's dispatcher names none.
        ledger: replaced when a forked process becomes a replica, as `live` and `run` are.
        live: the started dispatcher; None before, after a drain, and for a classic server that keeps its own strategy.
        run: the current run; None between two runs.
        phase, report: how the last run ended.
    """

    def __init__(self, server: Any, usual: Callable[[], Dispatcher], observers: Observers = NOBODY, clock: Clock = time.monotonic) -> None:
        self.server = server
        self.usual_dispatcher = usual
        self.observers = observers
        self.clock = clock
        self.ledger = Ledger(server, observers, clock)
        self.ledger.label = lambda: self.label
        self.live: StartedDispatcher | None = None
        self.run: Run | None = None
        self.phase = Phase.NEW
        self.name = ""  # what log lines call the server; "": see `label`
        self.report: DrainReport | None = None
        self.stop_before_start = False
        self.stopping = Stopping()  # that of the current run, or the last one
        self._undrained: Run | None = None  # the last run, if it was not drained
        self._gate = threading.Lock()  # guards `run`
        self._preparing = threading.Lock()  # what is made on first use is made once, whichever threads need it at the same time

    # what each kind of server does its own way

    @property
    @abstractmethod
    def lifecycle(self) -> Lifecycle:
        """The lifecycle of the next run."""

    @property
    @abstractmethod
    def limits(self) -> Limits | None:
        """The server's limits, if it has any."""

    @abstractmethod
    def recipe(self) -> Dispatcher | None:
        """Return the dispatcher to start; None if the server needs none."""

    @abstractmethod
    def sources(self, run: Run) -> Sequence[RequestSource]:
        """Return new sources of the server's listeners, for an intake of the run."""

    def selector(self) -> Any:
        """Return a selector for the plain loop; None: the platform's best poller."""
        return None

    @abstractmethod
    def turn(self) -> Callable[[], object] | None:
        """Return what to call after every turn of the loop; None: nothing, so the loop may sleep until an event."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The server's addresses, as log lines show them."""

    @property
    def label(self) -> str:
        """What log lines call the server: its name in a configuration, or its addresses."""
        return self.name or self.address

    def keep_renewing(self, run: Run) -> None:
        """Begin to renew what can be renewed while the run lasts. Called once, in the serving thread, when the run is ready."""

    def renew(self) -> None:
        """Renew everything that can be renewed, once, here and in worker processes. Called as `Run.call_later` calls."""

    def is_closed(self) -> bool:
        """Return whether the program has closed the listener, which ends the loop."""
        return False

    @abstractmethod
    def close_listeners(self, *, streams_only: bool = False) -> None:
        """Close the listeners; with `streams_only` keep datagram listeners, whose sockets running requests still reply on."""

    # the dispatcher

    def start_dispatcher(self) -> StartedDispatcher | None:
        """Return the live dispatcher, starting it on first use."""
        return self.live or self._start_dispatcher()

    def _start_dispatcher(self) -> StartedDispatcher | None:
        with self._preparing:
            if self.live is None and (recipe := self.recipe()) is not None:
                self.live = StartedDispatcher(recipe, Work(self))
            return self.live

    def tell(self, event: str, *facts: object) -> None:
        """Tell the observers of an event that does not concern a request."""
        self.observers.tell(event, self.server, *facts)

    # runs

    def prepare(self) -> None:
        """Start and open all that a run needs. If this fails, nothing is left open."""
        self.start_dispatcher()

    def begin(self, pace: float) -> Run:
        """Register and return a new run. pace: seconds between two calls of `turn` at most. Raises: AlreadyServingError."""
        with self._gate:
            if self.run is not None:
                raise AlreadyServingError
            run = Run(self, pace, getattr(self.lifecycle, "lame_duck", 0.0), getattr(self.lifecycle, "drain", None))
            run.before = self._undrained
            self.stopping = run.told
            self.run = run  # before the flag is read: `stop` sets the flag before it reads this again
            if self.stop_before_start:
                run.stopping, self.stop_before_start = True, False
        return run

    def serve(self, run: Run) -> None:
        """Run the lifecycle around the loop. Raises: whatever the lifecycle raises."""
        try:
            if not run.stopping:
                self.prepare()
                run.report = self.lifecycle.serve(run)
        except BaseException as error:
            run.error = error
            raise

    def finish(self, run: Run) -> None:
        """End the run. If it was not drained, its live dispatcher, listeners and parked connections are left to the next one."""
        self.phase = Phase.STOPPED if run.error is None else Phase.FAILED
        self.report = run.report
        run.told.set()
        run.timer.close()
        if isinstance(run.error, KeyboardInterrupt) and self.is_interruptible:
            self._cut_soon(self.ledger.active())
        self._undrained = None if run.drained else run
        if run.drained:
            self.live = None
        with self._gate:
            self.run = None
        self.tell("server_stopped", run.report)
        logs.finish()
        run.started.set()
        run.done.set()

    def finish_thread(self, run: Run) -> None:
        """As `finish`, at the end of a thread of the server's own, where requests may go on: see `socketkit.seams.Lingers`."""
        linger = None if run.drained or self.live is None or self.live.linger is None else self.live.linger()
        self.finish(run)
        if linger is not None:
            linger()

    def stop(self, drain: float | None, *, wait: bool) -> DrainReport | None:
        """Stop the run: see `socketkit.Server.stop`."""
        run = self.run  # read once: the run may end at any moment
        if run is None:
            self.stop_before_start = self.stop_before_start or self.phase is Phase.NEW
            run = self.run
            if run is None:
                return self.report
            self.stop_before_start = False  # a run has just begun, perhaps without having seen the flag
        if run.is_elsewhere:
            return None
        run.stop(drain)
        if not wait or self.is_needed_by(threading.get_ident()):
            return None
        limit = drain if drain is not None else getattr(self.lifecycle, "drain", None)
        if drain is None and limit is not None:
            limit += getattr(self.lifecycle, "lame_duck", 0.0)
        if limit is not None and not run.done.wait(limit + 0.5):
            run.stop(0)  # the run never reached its drain: a handler occupies the serving thread
        run.done.wait()
        return run.report

    def is_needed_by(self, thread: int) -> bool:
        """Return whether the run cannot end while that thread waits for it: the thread serves, or runs a handler."""
        return (self.run is not None and self.run.thread == thread) or self._runs_handler_in(thread)

    def _runs_handler_in(self, thread: int) -> bool:
        return any(entry.thread == thread for entry in self.ledger.active())

    def close(self, seconds: float | None, *, wait: bool = True) -> None:
        """Release what the last run has left: close parked connections, wait for running requests up to `seconds`, close the dispatcher."""
        undrained, self._undrained = self._undrained, None
        if undrained is not None:
            undrained.abandon()
            break_off(undrained.sources)
        live = self.live
        if live is not None:
            if wait and undrained is not None and isinstance(undrained.error, KeyboardInterrupt):
                self._wait_after_interrupt(live, seconds)
            elif wait:
                live.wait(seconds)
            live.close()
        if not self._runs_handler_in(threading.get_ident()):  # a call from a handler leaves it for other callers to wait on
            self.live = None

    def _cut_soon(self, entries: Sequence[Entry]) -> None:
        """Cut requests that a Ctrl-C would have interrupted in the standard library, unless they end by themselves."""

        def cut() -> None:
            shut_down(entry for entry in entries if self.ledger.find(entry.request) is entry)
            timer.close()

        if entries:
            timer = TimerThread(self.clock)
            timer.call_later(AFTER_INTERRUPT, cut)

    def force(self) -> None:
        """Shut down the sockets of requests that still run, so that blocked handlers wake, and wait briefly for them."""
        shut_down(self.ledger.active())
        if self.live is not None:
            if self.live.force is not None:
                self.live.force()
            self.live.wait(AFTER_FORCE)

    def _wait_after_interrupt(self, live: StartedDispatcher, seconds: float | None) -> None:
        try:
            if live.wait(AFTER_INTERRUPT if seconds is None else min(seconds, AFTER_INTERRUPT)):
                return
            if self.is_interruptible:
                self.force()
                return
            log.warning("waiting for %d running requests to end; press Ctrl-C again to end them now", self.ledger.read()[0])
            live.wait(seconds)
        except KeyboardInterrupt:
            shut_down(self.ledger.active())
            raise

    # forked processes

    def forget_parent(self, _request: Request) -> None:
        """In a child forked for a request, or for none: close the descriptors of the parent's loop, and what else it does not need."""
        if self.run is not None:
            self.run.close()

    def become_replica(
        self, dispatcher: Dispatcher | None, tally: Tally, opened: Callable[[Intake], None], settled: Callable[[int], None] | None
    ) -> Run:
        """In a forked child that serves: switch to another dispatcher, with its own ledger and run; see `socketkit.seams.Replica.enter`."""
        assert self.run is not None  # noqa: S101 - the dispatcher that drives this run forked the child
        self.run.close()
        self._gate, self._preparing = threading.Lock(), threading.Lock()
        return self.replicate(dispatcher or self.usual_dispatcher(), tally, opened, settled, self.run.pace)

    # copies in other interpreters

    def pack(self, _tally: Tally, _dispatcher: Dispatcher | None) -> PackedReplica:
        """Return what another interpreter needs to serve as this server does: see `socketkit.seams.Replica.pack`."""
        kind = type(self.server).__name__
        reason = "cannot be copied into another interpreter, because it is not composed of parts"
        raise IncompatibleError(kind, reason, "compose a socketkit.Server, or use prefork")

    def replicate(
        self,
        dispatcher: Dispatcher,
        tally: Tally,
        opened: Callable[[Intake], None],
        settled: Callable[[int], None] | None,
        pace: float,
    ) -> Run:
        """In a worker: serve with this dispatcher, and with a ledger and a run of its own. Return the run."""
        self.ledger = ledger = ReplicaLedger(self.ledger, tally, settled)
        self.run = run = Run(self, pace, opened=opened)
        self.stopping = run.told
        if settled is not None:
            from socketkit._engine.conversation import count_requests  # noqa: PLC0415 - for workers that count their requests

            count_requests(self.server.RequestHandlerClass, partial(_converse, ledger, run))
        self.live = StartedDispatcher(dispatcher, Work(self))
        return run


def _converse(ledger: ReplicaLedger, run: Run, handler: Any) -> None:
    """Count a request of a conversation that has just ended; if the run ends, end a conversation that cannot be parked."""
    ledger.converse()
    if run.intake is not None and run.intake.ending and not getattr(ledger.find(handler.request), "begun", False):
        handler.close_connection = True
