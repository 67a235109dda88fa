"""The end of a run: serve what has arrived, let running requests finish, force the rest, and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from socketkit._engine.conversation import GOODBYE
from socketkit._engine.holdup import shut_down, stuck_in
from socketkit._engine.intake import Intake
from socketkit._engine.parking import FINE_GRAIN
from socketkit._engine.request import STOPPED_EARLY
from socketkit._system.logs import Log
from socketkit._system.sockets import received
from socketkit.seams import Refusal
from socketkit.seams.stats import DrainReport

if TYPE_CHECKING:
    from socketkit._engine.engine import Engine
    from socketkit._engine.run import Run

log = Log("socketkit.serving")

STOPPED = Refusal("the server stopped before the request was run", "stop")

WAIT_SLICE = 0.1
"""Seconds between a drain's checks for a shortened deadline."""


class Drain:
    """The drain of one run. Used only by the thread that serves.

    queue: also serve what the kernel has queued.
    """

    def __init__(self, run: Run, engine: Engine, *, queue: bool) -> None:
        self._run = run
        self._engine = engine
        self._ledger = engine.ledger
        self._live = engine.live
        self._label = engine.label  # while its listeners, and so their ports, are known
        self._queue = queue
        self._refused = 0  # requests that the last round had no time for

    def carry_out(self) -> DrainReport:
        """Serve waiting requests, close the listeners, let running requests finish, force the rest, release everything."""
        run, ledger, live = self._run, self._ledger, self._live
        try:
            self._serve_last_round()
            self._refuse_silent()
            ended = self._wait()
            cut = self._refused + len(run.holdup.woken)
            finished = ledger.settled - run.settled - cut
            late = 0 if ended else ledger.stats().active
            if not ended:
                self._engine.force()
            stuck = stuck_in(ledger) if late else ()
        finally:
            run.drained = True
            self._engine.close_listeners()
            if live is not None:
                live.close()
        report = DrainReport(finished, cut + late - len(stuck), stuck)
        if cut or late:
            log.warning("%s: stopped at the deadline: %s", self._label, report)
        return report

    def _serve_last_round(self) -> None:
        """Serve requests that arrived before stop, accepted or queued in the kernel; close the listeners and idle connections."""
        run = self._run
        with self._open_last() as last:
            before, run.intake = run.intake, last
            for source in run.sources:
                source.intake = last  # before the old intake is emptied: a thread that cannot park there then finds this one
            units = self._queued() if self._queue else []
            self._engine.close_listeners(streams_only=True)
            if before is not None:
                units = [*before.units.empty(), *self._move(before.parked(), last), *units]
            last.units.woken.extend(units)
            if last.due() is not None or self._conversations_go_on():
                last.retire(GOODBYE + 2 * FINE_GRAIN, self._conversations_go_on)
                self._hand_out(last)
            for connection in last.parked():
                connection.abandon()
            for unit in last.units.empty():
                self._refused += 1
                unit.refuse(STOPPED)

    def _open_last(self) -> Intake:
        """Return an intake without sources. If no descriptor is left for it, close the listeners to make room."""
        try:
            last = Intake((), clock=self._engine.clock)
        except OSError as error:
            log.warning("connections in the kernel's queue are lost: %s", error)
            self._engine.close_listeners()
            last = Intake((), clock=self._engine.clock)
        last.ending = True
        return last

    def _queued(self) -> list[Any]:
        """Accept and return the requests that the kernel has queued."""
        if self._live is not None and self._live.unshare is not None:
            self._live.unshare()
        return [unit for source in self._run.sources for unit in source.queued(self._has_time)]

    def _has_time(self) -> bool:
        left = self._run.left()
        return left is None or left > 0

    def _conversations_go_on(self) -> bool:
        """Return whether conversations remain, either parked or running and likely to be parked."""
        return any(getattr(entry, "begun", False) for entry in self._ledger.active())

    def _move(self, parked: Sequence[Any], last: Intake) -> list[Any]:
        """Return the connections that can be served now, move those whose client is likely to send a request, and end the others."""
        ready, now, in_time = [], self._engine.clock(), self._has_time()
        for connection in parked:
            if connection.is_readable():
                ready.append(connection)
            elif not connection.begun or (in_time and connection.is_owed_goodbye(now)):
                connection.move(last)
            else:
                connection.abandon()
        return ready

    def _hand_out(self, last: Intake) -> None:
        """Have the dispatcher run the units of the last intake, until the deadline at the latest."""
        run, left = self._run, self._run.left()
        run.last = last
        try:
            if left is not None:  # units that are ready get one slice in any case
                run.call_later(max(left, WAIT_SLICE), run.time_out)
            run.crank()
        finally:
            run.last = None

    def _refuse_silent(self) -> None:
        """Refuse connections that still wait in a thread, greenlet or process for the first byte to their layers."""
        for entry in self._ledger.active():
            if entry.layers and received(entry.request) == 0:
                self._ledger.refuse(entry.request, STOPPED_EARLY)
                shut_down([entry])

    def _wait(self) -> bool:
        """Wait for the dispatcher until the deadline, which `stop` may shorten; return whether it has finished."""
        while self._live is not None:
            left = self._run.left()
            if self._live.wait(WAIT_SLICE if left is None else max(0.0, min(left, WAIT_SLICE))):
                break
            if left is not None and left <= 0:
                return False
        return True
