"""One run of a server, from its first request to the report of its drain."""

from __future__ import annotations

import contextlib
import enum
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial

from socketkit._engine.holdup import AFTER_FORCE, Holdup, break_off, shut_down
from socketkit._engine.housekeeping import Housekeeping
from socketkit._engine.intake import Intake
from socketkit._engine.stopping import Stopping
from socketkit._system.forking import forks
from socketkit._system.timer import TimerThread
from socketkit.seams.states import State

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.engine import Engine
    from socketkit._engine.sources import RequestSource
    from socketkit._engine.work import StartedDispatcher
    from socketkit.seams import DrainReport, InWork


class Phase(enum.Enum):
    """How far a server is. Each phase is read from flags that only ever become true, so a signal handler may set them."""

    NEW = State.NEW, "never served"
    RUNNING = State.RUNNING, "takes requests, or is about to"
    LAME = State.RUNNING, "told to stop; still takes requests"
    ENDING = State.RUNNING, "takes no more requests; the serving thread is on its way to the drain"
    DRAINING = State.DRAINING, "serves what has arrived, and waits for running requests"
    STOPPED = State.STOPPED, "nothing of the run is left, or it is left to the next run"
    FAILED = State.FAILED, "as STOPPED, after an error"

    @property
    def state(self) -> State:
        return self.value[0]


NEXT: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.RUNNING, Phase.ENDING}),
    Phase.RUNNING: frozenset({Phase.LAME, Phase.ENDING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
    Phase.LAME: frozenset({Phase.ENDING, Phase.DRAINING, Phase.FAILED}),
    Phase.ENDING: frozenset({Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
    Phase.DRAINING: frozenset({Phase.STOPPED, Phase.FAILED}),
    Phase.STOPPED: frozenset({Phase.RUNNING}),
    Phase.FAILED: frozenset({Phase.RUNNING}),
}
"""The phases that may follow each phase.

Any thread or signal handler brings about LAME and ENDING, by `Run.stop`. The serving thread brings about all others. ENDING follows NEW
if the server was stopped before its start; STOPPED follows RUNNING and ENDING without a drain under a lifecycle that does not drain.
"""


class Run:
    """One run of one server: the `socketkit.seams.Serving` of a lifecycle, and the target of `Server.stop`.

    pace: seconds between two calls of the engine's `turn` at most. lame_duck: seconds to keep serving after a stop request.
    patience: seconds that handlers may then take; None: no limit. opened: only for the run of a replica: called with each intake.
    """

    def __init__(
        self,
        engine: Engine,
        pace: float,
        lame_duck: float = 0.0,
        patience: float | None = None,
        opened: Callable[[Intake], None] | None = None,
    ) -> None:
        self._engine = engine
        self._clock = engine.clock
        self.pace = pace
        self._lame_duck = lame_duck
        self._patience = patience
        self._opened = opened
        self.timer = TimerThread(engine.clock)
        self._on_ready: list[tuple[Callable[[], None], float | None]] = []
        self.before: Run | None = None  # an earlier, undrained run, whose parked connections this one serves too
        self._behind = forks.behind
        self.thread = threading.get_ident()
        self.sources: Sequence[RequestSource] = ()
        self.intake: Intake | None = None
        self.last: Intake | None = None  # the last round's intake, while that is served
        self.ready = False  # requests are taken, and stop was not requested
        self.stopping = False
        self.told = Stopping()  # the same for handlers, who may wait for it
        self.draining = False
        self.drained = False  # whether its live dispatcher was waited for and closed
        self._handed_over = False
        self._lame_until: float | None = None  # after a stop request with a lame duck: when the run will stop
        self._asked = math.inf  # when it began to stop
        self._end_by: float | None = None  # when the drain ends, by its own limit
        self._deadlines: list[float] = []  # one for each stop(drain), from any thread: when the drain ends at the latest
        self.settled = 0  # requests already settled when it began to stop
        self.holdup = Holdup(engine.ledger)
        self.started = threading.Event()
        self.done = threading.Event()
        self.report: DrainReport | None = None
        self.error: BaseException | None = None

    @property
    def phase(self) -> Phase:
        if self.error is not None:
            return Phase.FAILED
        if self.draining:
            return Phase.DRAINING
        if self.stopping:
            return Phase.ENDING
        return Phase.RUNNING if self._lame_until is None else Phase.LAME

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a copy, forked by the program, of the process that serves: nothing in it can end the run."""
        return self._behind != forks.behind

    # serving

    def run(self) -> None:
        self.thread = threading.get_ident()
        if self._opened is None:  # otherwise the parent of this replica tells the observers
            self._engine.tell("server_started")
        if not self.stopping:
            self.crank()

    def crank(self) -> None:
        """Take requests until the intake is stopped, with the dispatcher's own `drive` if it has one, otherwise in the plain loop."""
        live, turned = self._engine.start_dispatcher(), self._engine.turn()

        def open_intake(*, listening: bool = True) -> Intake:
            intake = self._open_intake(listening=listening)
            if turned is not None and listening:
                intake.housekeeping = Housekeeping(intake, turned, self.pace)
            return intake

        try:
            if live is not None and live.drive is not None:
                live.drive(open_intake)
            else:
                with self._open_intake(plain=True) as intake:
                    feed(intake, live, turned, self.pace)
        except (OSError, ValueError):  # ValueError: a selector was given the descriptor -1
            if not self._engine.is_closed():
                raise

    def _open_intake(self, *, listening: bool = True, plain: bool = False) -> Intake:
        """Return a new intake, which `stop` can stop; in the last round, return its intake. Owner: the caller."""
        if self.last is not None:
            return self.last
        self.sources = self._engine.sources(self) if listening else ()
        intake = self.intake = Intake(self.sources, self._engine.selector() if plain else None, self._clock)
        if self.stopping:  # stop may have been requested before the intake existed
            intake.stop()
        before, self.before = self.before, None
        if before is not None:
            for connection in before.leftover():
                connection.move(intake)
        if self._opened is not None:
            self._opened(intake)
        if self.sources:
            self.be_ready()
        return intake

    def on_ready(self, callback: Callable[[], None], every: float | None = None) -> None:
        """Call `callback` in the thread that takes requests, once the run is ready; then again `every` seconds, None: once only."""
        self._on_ready.append((callback, every))

    def be_ready(self) -> None:
        """Mark the run as ready: requests are taken, by this process or by its first worker process."""
        intake = self.intake
        if self.started.is_set() or self.stopping or intake is None:
            return
        self.ready = True
        for callback, every in self._on_ready:
            intake.call_soon(callback)
            if every is not None:
                intake.call_soon(partial(keep_calling, intake, callback, every))
        self._engine.keep_renewing(self)
        self.started.set()

    def call_later(self, seconds: float, callback: Callable[[], object], *, in_signal_handler: bool = False) -> None:
        """Call `callback` after `seconds`, in a thread of its own. From any thread; see `TimerThread.call_later`.

        If the dispatcher forks, for each request or as many workers, the intake makes the call. The thread that waits in it is always
        free then, and a process that forks should have no other thread. Raises: RuntimeError when the system cannot start a thread.
        """
        live, intake = self._engine.live, self.intake
        if live is not None and live.forks and intake is not None:
            intake.call_soon(partial(intake.call_later, seconds, callback))
        else:
            self.timer.call_later(seconds, callback, in_signal_handler=in_signal_handler)

    def renew(self) -> None:
        """As `socketkit.seams.Serving.renew`."""
        if self.started.is_set():
            self.call_later(0.0, self._engine.renew, in_signal_handler=True)

    # stopping

    def stop(self, drain: float | None = None) -> None:
        """Request the end of `run`, or shorten the drain to `drain` seconds. Does not block; with 0 it also forces running requests to end.

        With 0 this also wakes handlers that block the serving thread itself, which nothing else could.
        """
        if drain is not None:
            self._deadlines.append(self._clock() + drain)
        if drain == 0:
            self._end()
            shut_down(self._engine.ledger.active())
        elif self.ready and self._lame_duck:
            self._lame_until = self._clock() + self._lame_duck
            if self.intake is not None:
                self.intake.lame = True
            self._be_lame()
        elif self.phase is Phase.LAME:
            self._be_lame()
        elif drain is not None or not self.stopping:
            self._end()
        self.ready = False

    def hand_over(self) -> None:
        """Take nothing new, hand out what was accepted, and end `run`; requests queued in the kernel are left to other processes."""
        self.ready, self._handed_over = False, True
        self._mark_end()
        if self.intake is not None:
            self.intake.retire()

    def in_work(self) -> InWork:
        """As `socketkit.seams.Serving.in_work`. Takes no lock, because a signal handler may have interrupted who holds it."""
        from socketkit.seams.stats import InWork  # noqa: PLC0415 - an attrs class, and classic servers do not drain

        ledger, intake = self._engine.ledger, self.intake
        idle = 0 if intake is None else len(intake.lot.parked)
        if self.stopping or self._lame_until is None or self._patience is None:
            left = self.left()
        else:
            left = self._until(self._lame_until + self._patience)
        return InWork(max(0, len(ledger.in_work) - idle) + ledger.replicas.read()[0], left)

    def left(self) -> float | None:
        """Return the seconds until the drain ends, by its own limit or by an earlier deadline set by `stop`; None: it may take for ever."""
        return self._until(self._end_by)

    def time_out(self) -> None:
        """Called when the time of a drain is up: stop its last round, or wake what keeps the drain from going on: a handler, or an accept.

        Goes on until the drain is over, because one of them may be about to begin.
        """
        left = self.left()
        if left is None or self.drained:
            return
        if left <= 0:
            if self.last is not None:
                self.last.stop()
            self.holdup.wake(self.thread, late=left < -AFTER_FORCE)
            break_off(self.sources)
        self._time_out_in(left if left > 0 else AFTER_FORCE)

    def _time_out_in(self, seconds: float) -> None:
        call_later = self.timer.call_later if self._accept_may_block() else self.call_later
        call_later(seconds, self.time_out, in_signal_handler=True)

    def _accept_may_block(self) -> bool:
        """Return whether a `get_request` of the program may keep the thread that takes requests from its timers."""
        return any(source.once for source in self.sources)

    def _be_lame(self) -> None:
        """Keep serving until the lame duck ends, or an earlier drain deadline; then end."""
        left = self._until(self._lame_until)
        if self.phase is not Phase.LAME or left is None:
            return
        if left > 0:
            with contextlib.suppress(RuntimeError):  # no thread is available to wait
                self.call_later(left, self._be_lame, in_signal_handler=True)
                return
        self._end()

    def _end(self) -> None:
        self.ready = False
        self._mark_end()
        live, left = self._engine.live, self.left()
        may_be_held_up = self.last is not None or self._accept_may_block() or (live is not None and live.inline)
        if left is not None and may_be_held_up:
            with contextlib.suppress(RuntimeError):  # no thread is available to wait
                self._time_out_in(left)
        if self.intake is not None:
            self.intake.stop()

    def _mark_end(self) -> None:
        if not self.stopping:
            self.settled = self._engine.ledger.settled
            self._asked = self._clock()
            self._end_by = None if self._patience is None else self._asked + self._patience
            self.stopping = True
            self.told.set()

    def _until(self, end: float | None) -> float | None:
        """Return the seconds until `end`, or an earlier deadline set by `stop`; None if there is neither."""
        ends = [*self._deadlines, *(() if end is None else (end,))]
        return min(ends) - self._clock() if ends else None

    # ending

    def drain(self, seconds: float | None, *, queue: bool = True) -> DrainReport:
        """End the run as `socketkit.seams.Serving.drain` says."""
        from socketkit._engine.drain import Drain  # noqa: PLC0415 - classic servers do not drain

        self.draining, self.ready = True, False
        self._mark_end()
        self._end_by = None if seconds is None else self._asked + seconds
        if self._opened is None:
            self._engine.tell("server_stopping")
        left = self._until(None)
        forced = left is not None and left <= 0
        self.report = Drain(self, self._engine, queue=queue and not self._handed_over and not forced).carry_out()
        if self._opened is not None:
            self._engine.tell("process_ending")
            self.timer.close()  # nothing else ends a replica, and its thread would outlive the interpreter that this may be in
        return self.report

    def close(self) -> None:
        """In a forked child: close this process's copies of the selector and the wake-up descriptor."""
        if self.intake is not None:
            self.intake.close()

    def leftover(self) -> list[Any]:
        """Remove and return parked connections so that the next run can adopt them."""
        before, self.before = self.before, None
        older = [] if before is None else before.leftover()  # not adopted: this run opened no intake
        return older if self.intake is None else [*older, *self.intake.units.empty(), *self.intake.parked()]

    def abandon(self) -> None:
        """End parked connections, because no run follows this one."""
        for connection in self.leftover():
            connection.abandon()


def feed(intake: Intake, live: StartedDispatcher | None, turned: Callable[[], object] | None, pace: float) -> None:
    """Take and run units in this thread until the intake is stopped: the loop of every simple dispatcher.

    turned: called after every turn, and at least every `pace` seconds.
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


def _feed(intake: Intake, turned: Callable[[], object] | None, pace: float) -> None:
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
    """Call `callback` every `pace` seconds from within `intake.take`."""

    def again() -> None:
        callback()
        intake.call_later(pace, again)

    intake.call_later(pace, again)
