"""Sync speed while handlers are quick, as many threads as it takes as soon as they block.

One worker, the *leader*, holds the *baton*: it waits at the intake, takes a unit and runs it itself. While it does, the baton lies
on the *table*, and whoever picks it up goes on leading. Usually that is the leader itself, a moment later: no queue, no lock, no
other thread. If the leader stays inside one unit for too long, the *monitor* (the thread that called `drive`) picks the baton up
and gives it to a *spare* worker, started if there is none. A worker that has lost the lead when its unit is done becomes a spare.
See docs/explanation/adaptive.md.

The monitor does not look every now and then: it sleeps until an *alarm*, which a leader that gets on postpones all the time.

The table is a deque, whose `append` and `pop` are atomic; so there is always exactly one baton, and no lock on the quick path.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, ClassVar

import attrs

from socketkit._system.threads import SureThread
from socketkit.dispatchers._alarm import best_alarm
from socketkit.logs import Log
from socketkit.seams import Seconds, Work
from socketkit.seams.parking import Parking
from socketkit.seams.validators import at_least, seconds, seconds_or_none

log = Log(__name__)

SPARE_SECONDS = 10.0
"""How long a worker stays without work before it ends."""

DECAY = 0.99
"""What a unit leaves of the score of those before it: the score is about how many of the last hundred blocked."""

LESSON = 0.05
"""By how much each unit changes what is known of how long they usually take."""

BLOCKING = 25.0
"""Above this score the leader passes the baton before it runs a unit, not after."""

HASTE = 4.0
"""By how much each point of the score divides the time that a unit may hold the leader."""

LEAST = 4.0
"""How many times as long as units usually take one may hold the leader at least: who computes is not blocked."""

SHORTEST = 50e-6
"""Seconds that a unit may hold the leader at least: to wake another thread takes as long."""

FAINT = 0.05
"""A score that is none."""

TRY_AGAIN = 0.1
"""Seconds until the monitor looks again after the system had no thread to give."""

LONG_AGO = float("-inf")

BATON = "baton"
"""The right to be at the intake. There is one."""


@attrs.frozen
class Adaptive:
    """One thread while handlers are quick, and another for each one that blocks.

    Connections wait without a thread until their first byte arrives, and between the requests of a conversation.
    """

    workers: int = attrs.field(default=1024, validator=at_least(1))
    """The most threads; while all are busy nothing is accepted. They start one at a time, when a handler blocks."""
    handoff: Seconds = attrs.field(default=0.001, kw_only=True, validator=seconds)
    """How long a handler may hold the leader before another worker leads on."""
    defer: Seconds = attrs.field(default=0.01, kw_only=True, validator=seconds)
    """How long a new connection may wait for its first byte before its handler starts anyway."""
    idle: Seconds | None = attrs.field(default=75.0, kw_only=True, validator=seconds_or_none)
    """How long a conversation may wait for its next request before it is closed; None: for ever."""
    max_inline: int = attrs.field(default=10, kw_only=True, validator=at_least(1))
    """Requests that one conversation may make in a row while others wait."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def start(self, work: Work) -> _Adaptive:  # noqa: ARG002 - units know their server
        """Return the live part."""
        return _Adaptive(self)


class _Worker:
    """A thread that leads, runs a unit, or is spare."""

    __slots__ = ("called", "goes_home", "taken_for_blocked", "thread")

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)  # released by whoever gives it the baton, or sends it home
        self.goes_home = False
        self.taken_for_blocked = False  # the monitor has, and put it into the score
        self.thread: threading.Thread


class _Adaptive:
    """The live part. There is exactly one baton: it lies on the table, or one worker leads with it, or it is being passed."""

    def __init__(self, recipe: Adaptive) -> None:
        self.runs_in_place = True
        self.parking = Parking(recipe.defer, recipe.idle, recipe.max_inline)
        self._most = recipe.workers
        self._handoff = recipe.handoff
        self._table: deque[str] = deque()  # the baton, while a unit runs
        self._spares: deque[_Worker] = deque()  # the last to come is the first to go
        self._workers: set[_Worker] = set()
        self._hiring = threading.Lock()  # guards the set
        self._score = 0.0  # how many of the last hundred units blocked, about
        self._usual = 0.0  # how long units take that do not block, about; in seconds
        self._patience = recipe.handoff  # how long the present unit may hold the leader
        self._alarm_set = LONG_AGO  # or when a leader did
        self._leader: _Worker | None = None  # the last one that was given the baton
        self._wanted = False  # the baton lies on the table because nobody was free to take it
        self._retired = False  # spare workers are to go home
        self._error: BaseException | None = None

    # --- the monitor, in the thread that serves ----------------------------------------------------------------------

    def drive(self, open_intake: Callable[[], Any]) -> None:
        """Watch the leader until the intake is stopped."""
        alarm = best_alarm()  # also rung by a stop
        with contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            self._intake, self._alarm = intake, alarm
            self._table, self._spares, self._retired = deque(), deque(), False  # those who still work for a run before keep theirs
            self._alarm_set, self._wanted = LONG_AGO, False
            intake.on_stop(alarm.wake)
            try:
                self._pass_baton()
                while not intake.stopped:
                    alarm.watch()
                    self._look()
            finally:  # Ctrl-C may have come anywhere, as an exception
                intake.stop()
                self._send_home()
        if self._error is not None:
            raise self._error

    def _send_home(self) -> None:
        """Wait until no worker is inside the intake, which is stopped, and let the spare ones end."""
        give_up = time.monotonic() + 1.0  # should an exception have come between picking the baton up and passing it on
        while not self._pick_up() and time.monotonic() < give_up:
            self._alarm.wait(0.01)
        self._retired = True
        while self._spares:
            worker = self._spares.pop()
            worker.goes_home = True
            worker.called.release()

    def _look(self) -> None:
        """If the leader has been inside one unit for too long, give the baton to another worker."""
        if time.monotonic() < self._alarm_set + 2 * self._patience:
            return  # it has begun another one since
        self._wanted = True  # before the look for somebody: whoever becomes free does it the other way round
        if self._is_somebody_free() and self._pick_up():
            self._wanted = False
            if self._leader is not None:
                self._leader.taken_for_blocked = True
                self._score += 1.0
            self._pass_baton()

    def _set_alarm(self, now: float) -> None:
        """Have the monitor look in twice the patience there is, unless a leader comes by here again in the meantime.

        It does with the first unit it begins after one patience, so a unit that is still running then has run for one to two. The more
        units have blocked lately, the less patience: each of them is waited for.
        """
        self._patience = min(self._handoff, max(self._handoff / (1.0 + HASTE * self._score), LEAST * self._usual, SHORTEST))
        self._wanted = False
        self._alarm_set = now
        self._alarm.set(2 * self._patience)

    # --- the baton ---------------------------------------------------------------------------------------------------

    def _pick_up(self) -> bool:
        """Take the baton from the table; False if it does not lie there."""
        return _picked_up(self._table)

    def _pass_baton(self) -> None:
        """Give the baton, which the caller holds, to a spare worker or to a new one; put it down if there is neither."""
        while True:
            try:
                self._spares.pop().called.release()
            except IndexError:
                if not self._hire():
                    self._alarm_set = LONG_AGO  # so that the next unit that is begun does
                    self._alarm.set(TRY_AGAIN)
                    self._wanted = True
                    self._table.append(BATON)  # whoever is done first picks it up
                    if self._spares and self._pick_up():
                        continue  # somebody was done just before
            return

    def _is_somebody_free(self) -> bool:
        return bool(self._spares) or len(self._workers) < self._most

    def _hire(self) -> bool:
        """Start a worker that leads; False if there are as many as there may be, or the system has no thread to give."""
        worker = _Worker()
        with self._hiring:
            if len(self._workers) >= self._most:
                return False
            worker.thread = SureThread(target=self._work, args=(worker,), name=f"socketkit-adaptive-{len(self._workers) + 1}", daemon=True)
            self._workers.add(worker)
        try:
            worker.thread.start()
        except RuntimeError as error:
            log.warning("no more than %d threads: %s", len(self._workers) - 1, error)
            with self._hiring:
                self._workers.discard(worker)
            if not self._workers:
                raise
            return False
        return True

    # --- the workers -------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        """Be a worker: lead, and be spare, until there was nothing to do for a while or the server stops."""
        try:
            while self._lead(worker) and self._wait_spare(worker):
                pass
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever called `drive`: this thread may have had the baton
            self._error = error
            self._intake.stop()
            self._table.append(BATON)
            self._alarm.wake()
        finally:
            with self._hiring:
                self._workers.discard(worker)

    def _lead(self, worker: _Worker) -> bool:
        """Take and run units until the baton is lost (True) or the intake is stopped (False)."""
        intake, table = self._intake, self._table  # of this run: by the time a unit is done there may be another one
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
            self._run(unit)
            del unit  # nothing of a request outlives it here
            if self._score > FAINT:
                self._learn(time.monotonic() - now)
            if self._leader is worker and _picked_up(table):
                continue
            has_blocked = time.monotonic() - now > self._handoff
            self._count(worker, has_blocked=has_blocked)
            if not (has_blocked and _picked_up(table)):  # one who was quick would only disturb the one who leads now
                return True
            self._leader = worker

    def _learn(self, seconds: float) -> None:
        """Take notice of how long a unit took: of the time that units usually take, and in the score."""
        self._score *= DECAY
        if seconds <= self._handoff:
            self._usual += (seconds - self._usual) * LESSON

    def _count(self, worker: _Worker, *, has_blocked: bool) -> None:
        """Keep the score, for a worker that has lost the baton while it ran a unit."""
        if has_blocked and not worker.taken_for_blocked:
            self._score += 1.0
        elif worker.taken_for_blocked and not has_blocked:
            self._score = max(self._score - 1.0, 0.0)
        worker.taken_for_blocked = False

    def _wait_spare(self, worker: _Worker) -> bool:
        """Wait to be given the baton; False if it is time to go home."""
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
                continue  # somebody is about to give it the baton
            return False
        return False

    def _run(self, unit: Callable[[], object]) -> None:
        try:
            copy_context().run(unit)  # so that no request sees another's context variables
        except BaseException:
            log.exception("a unit of work raised; its thread goes on")

    # --- the end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Wait until every worker has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._hiring:
            workers = list(self._workers)
        for worker in workers:
            if worker.thread is threading.current_thread() or worker.thread.ident is None:
                continue  # a handler closes its own server; or its start was interrupted
            worker.thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if worker.thread.is_alive():
                return False
        return True

    def close(self) -> None:
        """Do nothing: what there is to release ended with `drive` and `wait`."""


def _picked_up(table: deque[str]) -> bool:
    """Take the baton from a table; return whether it lay there."""
    try:
        table.pop()
    except IndexError:
        return False
    return True
