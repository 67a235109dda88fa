"""Sync speed while handlers are quick, and as many threads as needed once they block.

One worker, the *leader*, holds the *baton*: it waits at the intake, takes a unit and runs it itself. Meanwhile the baton lies on
the *table*, and the thread that picks it up leads next. Usually the leader itself picks it up a moment later: no queue, no lock, no
other thread. If the leader stays inside one unit for too long, the *monitor* (the thread that called `drive`) picks the baton up
and gives it to a *spare* worker, starting one if there is none. A worker that finds the lead lost after its unit becomes a spare.
See docs/explanation/adaptive.md.

The monitor does not poll: it sleeps until an *alarm*, which the leader keeps postponing while it makes progress.

The table is a deque. Its `append` and `pop` are atomic, so there is always exactly one baton and the fast path needs no lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from socketkit._system.threads import SureThread, join_all
from socketkit.dispatchers._alarm import best_alarm
from socketkit.dispatchers._parking import ParkingOptions, own_first
from socketkit.dispatchers._workers import run_unit
from socketkit.logs import Log
from socketkit.seams import Seconds, Work
from socketkit.seams.validators import at_least, seconds

log = Log(__name__)

SPARE_SECONDS = 10.0
"""Seconds that a spare worker waits for work before it ends."""

DECAY = 0.99
"""Factor applied to the score at each unit. The score is roughly the number of the last hundred units that blocked."""

LESSON = 0.05
"""Weight of each unit in the moving average of how long units take."""

BLOCKING = 25.0
"""Above this score the leader passes the baton before it runs a unit, not after."""

HASTE = 4.0
"""How strongly the score shortens the time that a unit may hold the leader: each point adds this much to the divisor."""

LEAST = 4.0
"""A unit may hold the leader at least this many times the usual duration: a unit that computes is not blocked."""

SHORTEST = 50e-6
"""Least seconds that a unit may hold the leader: waking another thread takes as long."""

FAINT = 0.05
"""A score up to this counts as zero."""

TRY_AGAIN = 0.1
"""Seconds until the monitor looks again after a new thread could not be started."""

UNTIL_HOME = 1.0
"""Seconds until the monitor leaves a worker behind that an accept still blocks, or stops looking for a baton that an exception lost."""

LONG_AGO = float("-inf")

BATON = "baton"
"""The right to wait at the intake. There is exactly one."""


@attrs.frozen(field_transformer=own_first)
class Adaptive(ParkingOptions):
    """One thread while handlers are quick, plus another for each handler that blocks.

    Connections occupy no thread before their first byte arrives or between the requests of a conversation.
    """

    workers: int = attrs.field(default=1024, validator=at_least(1))
    """Most threads; nothing is accepted while all are busy. They start one at a time, when a handler blocks."""
    handoff: Seconds = attrs.field(default=0.001, kw_only=True, validator=seconds)
    """How long a handler may hold the leader before another worker takes the lead."""

    def max_handlers(self, handler: Any) -> int:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once: one in each thread."""
        return self.workers

    def start(self, work: Work) -> _Adaptive:  # noqa: ARG002 - units already refer to their server
        """Return the live part."""
        return _Adaptive(self)


class _Worker:
    __slots__ = ("called", "goes_home", "taken_for_blocked", "thread")

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)  # released to give this worker the baton or to tell it to end
        self.goes_home = False
        self.taken_for_blocked = False  # the monitor judged it blocked and raised the score
        self.thread: threading.Thread


class _Adaptive:
    """The live part. There is exactly one baton: on the table, held by the leader, or being passed."""

    def __init__(self, recipe: Adaptive) -> None:
        self.runs_in_place = True
        self.parking = recipe.parking
        self._most = recipe.workers
        self._handoff = recipe.handoff
        self._table: deque[str] = deque()  # the baton, while a unit runs
        self._spares: deque[_Worker] = deque()  # last in, first out
        self._workers: set[_Worker] = set()
        self._hiring = threading.Lock()  # guards the set
        self._score = 0.0  # roughly how many of the last hundred units blocked
        self._usual = 0.0  # roughly how many seconds a unit that does not block takes
        self._patience = recipe.handoff  # seconds that the current unit may hold the leader
        self._alarm_set = LONG_AGO  # monotonic time at which a leader last set the alarm
        self._leader: _Worker | None = None  # the last worker that got the baton
        self._wanted = False  # the baton lies on the table because no worker was free to take it
        self._retired = False  # spare workers must end
        self._error: BaseException | None = None

    # --- the monitor, in the thread that serves ----------------------------------------------------------------------

    def drive(self, open_intake: Callable[[], Any]) -> None:
        alarm = best_alarm()  # a stop wakes it too
        with contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            self._intake, self._alarm, self._error = intake, alarm, None
            self._table, self._spares, self._retired = deque(), deque(), False  # workers still on an earlier run keep theirs
            self._alarm_set, self._wanted = LONG_AGO, False
            intake.on_stop(alarm.wake)
            try:
                self._pass_baton()
                while not intake.stopped:
                    alarm.watch(intake.housekeep())
                    self._look()
            finally:  # Ctrl-C can raise an exception anywhere
                intake.stop()
                self._send_home()
        if self._error is not None:
            raise self._error

    def _send_home(self) -> None:
        """Wait until no worker is inside the stopped intake, then tell spare workers to end."""
        give_up = time.monotonic() + UNTIL_HOME
        while not self._pick_up() and time.monotonic() < give_up:
            self._alarm.wait(0.01)
        self._retired = True
        with contextlib.suppress(IndexError):  # there is none left; to ask first is not enough, because a worker may remove itself
            while True:
                worker = self._spares.pop()
                worker.goes_home = True
                worker.called.release()

    def _look(self) -> None:
        """If the leader has been inside one unit for too long, give the baton to another worker."""
        if time.monotonic() < self._alarm_set + 2 * self._patience:
            return  # the leader has begun another unit since
        self._wanted = True  # set before looking for a free worker: a worker that becomes free checks in the opposite order
        if self._is_somebody_free() and self._pick_up():
            self._wanted = False
            if self._leader is not None:
                self._leader.taken_for_blocked = True
                self._score += 1.0
            self._pass_baton()

    def _set_alarm(self, now: float) -> None:
        """Have the monitor look after twice the current patience, unless a leader calls this again first.

        A leader calls it with the first unit it begins after one patience, so a unit still running at the alarm has run for one to two.
        Patience shrinks as more units block, because each blocked unit delays the others by that long.
        """
        self._patience = min(self._handoff, max(self._handoff / (1.0 + HASTE * self._score), LEAST * self._usual, SHORTEST))
        self._wanted = False
        self._alarm_set = now
        self._alarm.set(2 * self._patience)

    # --- the baton ---------------------------------------------------------------------------------------------------

    def _pick_up(self) -> bool:
        return _picked_up(self._table)

    def _pass_baton(self) -> None:
        """Give the caller's baton to a spare worker or a new one; put it on the table if there is neither."""
        while True:
            try:
                self._spares.pop().called.release()
            except IndexError:
                if not self._hire():
                    self._alarm_set = LONG_AGO  # so that the next unit sets the alarm
                    self._alarm.set(TRY_AGAIN)
                    self._wanted = True
                    self._table.append(BATON)  # the first worker to finish picks it up
                    if self._spares and self._pick_up():
                        continue  # a worker finished just before
            return

    def _is_somebody_free(self) -> bool:
        return bool(self._spares) or len(self._workers) < self._most

    def _hire(self) -> bool:
        """Start a worker that leads; False at the limit of workers, or if the system has no thread left."""
        worker = _Worker()
        with self._hiring:
            if len(self._workers) >= self._most:
                return False
            worker.thread = SureThread(target=self._work, args=(worker,), name=f"socketkit-adaptive-{len(self._workers) + 1}", daemon=True)
            self._workers.add(worker)
        try:
            worker.thread.start()
        except RuntimeError as error:
            log.warning("cannot start another thread, so only %d run: %s", len(self._workers) - 1, error)
            with self._hiring:
                self._workers.discard(worker)
            if not self._workers:
                raise
            return False
        return True

    # --- the workers -------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        """Run one worker: lead and be spare by turns, until it has been spare for `SPARE_SECONDS` or the server stops."""
        try:
            while self._lead(worker) and self._wait_spare(worker):
                pass
        except BaseException as error:  # noqa: BLE001 - `drive` raises it to its caller: this thread may have had the baton
            self._error = error
            self._intake.stop()
            self._table.append(BATON)
            self._alarm.wake()
        finally:
            with self._hiring:
                self._workers.discard(worker)

    def _lead(self, worker: _Worker) -> bool:
        """Take and run units until the baton is lost (True) or the intake is stopped (False)."""
        intake, table = self._intake, self._table  # of this run: another run may begin before a unit is done
        self._leader = worker
        while True:
            unit = intake.take()
            if unit is None:
                table.append(BATON)
                self._alarm.wake()
                return False
            now = time.monotonic()
            if self._score > BLOCKING and self._is_somebody_free():
                self._pass_baton()
            else:
                if now >= self._alarm_set + self._patience:
                    self._set_alarm(now)
                table.append(BATON)
                if self._wanted:  # this thread did not run for so long that the monitor looked before the baton lay there
                    self._alarm.wake()
            run_unit(unit, log)
            del unit  # keep no reference to a finished request
            if self._score > FAINT:
                self._learn(time.monotonic() - now)
            if self._leader is worker and _picked_up(table):
                continue
            has_blocked = time.monotonic() - now > self._handoff
            self._count(worker, has_blocked=has_blocked)
            if not (has_blocked and _picked_up(table)):  # a worker that was quick would only disturb the current leader
                return True
            self._leader = worker

    def _learn(self, seconds: float) -> None:
        self._score *= DECAY
        if seconds <= self._handoff:
            self._usual += (seconds - self._usual) * LESSON

    def _count(self, worker: _Worker, *, has_blocked: bool) -> None:
        """Correct the score for a worker that lost the baton while it ran a unit."""
        if has_blocked and not worker.taken_for_blocked:
            self._score += 1.0
        elif worker.taken_for_blocked and not has_blocked:
            self._score = max(self._score - 1.0, 0.0)
        worker.taken_for_blocked = False

    def _wait_spare(self, worker: _Worker) -> bool:
        """Wait to be given the baton; False if the worker must end."""
        spares = self._spares
        spares.append(worker)
        if self._wanted and self._pick_up():
            self._wanted = False
            spares.remove(worker)
            return True
        while not self._retired:
            if worker.called.acquire(timeout=SPARE_SECONDS):
                return not worker.goes_home
            try:
                spares.remove(worker)
            except ValueError:
                continue  # another thread is about to give it the baton
            return False
        return False

    # --- the end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        with self._hiring:
            threads = [worker.thread for worker in self._workers]
        return join_all(threads, timeout)

    def close(self) -> None:
        pass  # `drive` and `wait` have already released everything


def _picked_up(table: deque[str]) -> bool:
    """Take the baton from a table; return whether it was there."""
    try:
        table.pop()
    except IndexError:
        return False
    return True
