"""The supervisor of workers, which are processes or interpreters: it starts, monitors, replaces and stops them.

It takes no requests. Everything here runs in the serving thread.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from socketkit._system import logs
from socketkit.dispatchers._supervision.handle import (
    CLOSE,
    DUE,
    FORCE,
    GOING,
    LEAVE,
    READY,
    RENEW,
    STOP,
    Ending,
    WorkerHandle,
    WorkerState,
    hear,
    say,
)
from socketkit.errors import BootError
from socketkit.logs import Log
from socketkit.seams import Work

if TYPE_CHECKING:
    from socketkit.dispatchers._supervised import Supervised

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds to wait after a worker fails to boot before starting the next: doubles from the first value up to the second."""

GRACE = 1.0
"""Seconds that a worker gets to end by itself after it was told to end at once."""


class Supervisor(ABC):
    """The live part of a dispatcher whose workers serve on their own. A subclass for each kind of worker: the abstract methods."""

    log: ClassVar[Log]

    def __init__(self, recipe: Supervised, work: Work) -> None:
        self._recipe = recipe
        self._work = work
        self._target = recipe.count
        self._lines = 2 * self._target + 8  # most log lines of one kind in a burst
        self._workers: dict[int, WorkerHandle] = {}
        self._intake: Any = None  # set only during `drive`
        self._failures = 0  # failures to boot in a row
        self._pause = SHORTEST_PAUSE
        self._resting = False  # pausing after a failure to boot
        self._error: BaseException | None = None

    # --- what each kind of worker does its own way -------------------------------------------------------------------------

    @abstractmethod
    def employ(self) -> WorkerHandle:
        """Start a worker. Raises: OSError, RuntimeError if no process, interpreter, thread, descriptor or memory is available."""

    @abstractmethod
    def wait_for_exit(self, timeout: float | None) -> None:
        """Wait until a worker may have ended, or `timeout` seconds have passed (None: no limit)."""

    def watch_over(self) -> None:  # noqa: B027 - most have nothing to do
        """Begin whatever is done again and again while the server serves."""

    # --- serving ---------------------------------------------------------------------------------------------------------

    def drive(self, open_intake: Callable[..., Any]) -> None:
        self._failures, self._pause, self._resting, self._error = 0, SHORTEST_PAUSE, False, None
        with open_intake(listening=False) as intake, intake.woken_by_signals():
            self._intake = intake
            for left_over in self._workers.values():
                self._watch(left_over)
            try:
                self._fill()
                self.watch_over()
                while not intake.stopped:
                    intake.take()
            finally:
                self._intake = None
                for worker in self._workers.values():
                    worker.state = WorkerState.LEAVING
                    say(worker.channel, CLOSE)
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._have_all_ended():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.wait_for_exit(left)
        return True

    def renew_workers(self) -> None:
        for worker in self._workers.values():
            say(worker.channel, RENEW)

    def force(self) -> None:
        for worker in self._workers.values():
            self._hurry(worker)

    def close(self) -> None:
        if not all(worker.hurried for worker in self._workers.values()):  # nobody has waited for them, as in a server without a drain
            self.force()
            self.wait(GRACE)
        for worker in self._workers.values():
            worker.kill()
        self.wait(None)

    # --- starting --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while not self._resting and not self._intake.stopped and self._count(WorkerState.BOOTING, WorkerState.SERVING) < self._target:
            self._hire()

    def _has(self, worker: WorkerHandle) -> bool:
        """Return whether the worker has not been buried yet, so that its number is still its own."""
        return self._workers.get(worker.number) is worker

    def _count(self, *states: WorkerState) -> int:
        return sum(worker.state in states for worker in self._workers.values())

    def _hire(self) -> None:
        try:
            worker = self.employ()
        except (OSError, RuntimeError) as error:
            self._fail_to_boot(str(error), hopeless=not self._workers)
            return
        self._workers[worker.number] = worker
        self._watch(worker)
        self._later(self._recipe.boot_timeout, self._check_boot, worker)
        if self._recipe.max_age is not None:
            self._later(self._at_random(self._recipe.max_age), self._retire, worker)

    def _at_random(self, limit: Any) -> Any:
        """Return the limit reduced by a random fraction of up to `jitter`."""
        if limit is None:
            return None
        less = limit * (1 - self._recipe.jitter * random.random())  # noqa: S311 - not used for secrets
        return max(1, round(less)) if isinstance(limit, int) else less

    def _watch(self, worker: WorkerHandle) -> None:
        self._intake.watch(worker.channel.fileno(), partial(self._listen, worker))
        if worker.exit_descriptor is not None:
            self._intake.watch(worker.exit_descriptor, partial(self._look, worker))

    def _later(self, seconds: float, step: Callable[[WorkerHandle], None], worker: WorkerHandle) -> None:
        """Take a step after this many seconds, unless the worker has ended by then."""
        self._intake.call_later(seconds, lambda: step(worker) if self._has(worker) else None)

    def _check_boot(self, worker: WorkerHandle) -> None:
        if worker.state is WorkerState.BOOTING:
            self.abort(worker, f"it was not ready within {self._recipe.boot_timeout:g} s")

    def _fail_to_boot(self, cause: str, *, hopeless: bool = True, for_good: bool = False) -> None:
        """Pause before the next attempt; stop the server after too many hopeless ones, or at once if the next would fail too."""
        self._failures += 1
        if for_good or (hopeless and self._failures >= self._recipe.boots):
            self._error = BootError(self._failures, cause)
            self._intake.stop()
        elif not self._resting:
            self.log.warning("cannot start a worker (%s); the next attempt is in %.1f s", cause, self._pause)
            self._rest(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _rest(self, pause: float) -> None:
        if not self._resting:
            self._resting = True
            self._intake.call_later(pause, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._fill()

    # --- messages --------------------------------------------------------------------------------------------------------

    def _listen(self, worker: WorkerHandle) -> None:
        """Handle the worker's messages. Without an exit descriptor, the end of the channel means that the worker ends."""
        words = hear(worker.channel)
        for word in words or "":
            self._hear(worker, word)
        if words is None and self._has(worker):
            self._intake.unwatch(worker.channel.fileno())
            if worker.exit_descriptor is None:
                self._look(worker)

    def _hear(self, worker: WorkerHandle, word: str) -> None:
        worker.heard = time.monotonic()
        if word == READY and worker.state is WorkerState.BOOTING and not worker.verdict:
            worker.state = WorkerState.SERVING
            self._failures, self._pause = 0, SHORTEST_PAUSE
            self.log.info("worker %d is ready", worker.number, few=self._lines)
            worker.replica.begun(worker.number)
            self._relieve()
        elif word == DUE:
            self._retire(worker)
        elif word == GOING:
            self._let_leave(worker)
            self._fill()
        elif word == STOP:
            worker.state = WorkerState.LEAVING
            self._intake.stop()

    def _retire(self, worker: WorkerHandle) -> None:
        """Start a successor. The worker keeps serving until the successor is ready."""
        if worker.state is WorkerState.SERVING:
            worker.state = WorkerState.DUE
            self._fill()

    def _relieve(self) -> None:
        due = [worker for worker in self._workers.values() if worker.state is WorkerState.DUE]
        if due and self._count(WorkerState.SERVING, WorkerState.DUE) > self._target:
            say(due[0].channel, LEAVE)
            self._let_leave(due[0])

    def _look(self, worker: WorkerHandle) -> None:
        """Remove the worker if it has ended."""
        ending = worker.ended()
        if ending is not None:
            self._bury(worker, ending)
        elif worker.exit_descriptor is None and self._intake is not None:
            self._later(0.01, self._look, worker)  # its channel has ended, and it is about to

    # --- ending ----------------------------------------------------------------------------------------------------------

    def _let_leave(self, worker: WorkerHandle) -> None:
        worker.state = WorkerState.LEAVING
        if self._recipe.drain is not None:
            self._later(self._recipe.drain, self._expel, worker)

    def _hurry(self, worker: WorkerHandle) -> None:
        worker.hurried = True
        say(worker.channel, FORCE)
        worker.end()

    def _expel(self, worker: WorkerHandle) -> None:
        """Hurry a worker whose drain time is over, then end it by force."""
        self._hurry(worker)
        self._later(GRACE, self._kill, worker)

    def abort(self, worker: WorkerHandle, verdict: str) -> None:
        """End a useless worker."""
        self.log.error("the supervisor aborts worker %d: %s", worker.number, verdict, few=self._lines)
        worker.verdict = verdict
        logs.flush(logs.SHORT_PATIENCE)  # otherwise that line and the stacks may end up in each other
        worker.abort()
        self._later(GRACE, self._kill, worker)

    def _kill(self, worker: WorkerHandle) -> None:
        if self._has(worker):
            worker.kill()
            self._look(worker)

    def _have_all_ended(self) -> bool:
        """Remove the workers that have ended; return whether all have."""
        for worker in list(self._workers.values()):
            self._look(worker)
        return not self._workers

    def _bury(self, worker: WorkerHandle, ending: Ending) -> None:
        """Remove a worker that has ended, log how it ended, and start a replacement."""
        if self._intake is not None:
            for word in hear(worker.channel) or "":  # its last messages
                self._hear(worker, word)
            self._intake.unwatch(worker.channel.fileno())
            if worker.exit_descriptor is not None:
                self._intake.unwatch(worker.exit_descriptor)
        del self._workers[worker.number]
        worker.close()
        cause = f"{worker.verdict} ({ending.how})" if worker.verdict else ending.how
        state, count = worker.state, worker.replica.served()
        served = f"it had served {count} request{'s' * (count != 1)}"
        if state is not WorkerState.LEAVING:
            self.log.error("worker %d died: %s; %s", worker.number, cause, served, few=self._lines)
        elif ending.late:
            self.log.warning("worker %d did not end in time, %s; %s", worker.number, ending.late, served, few=self._lines)
        elif not ending.clean:
            self.log.warning("worker %d did not end by itself: %s; %s", worker.number, cause, served, few=self._lines)
        else:
            self.log.info("worker %d has left; %s", worker.number, served, few=self._lines)
        worker.replica.close(worker.number, "" if state is WorkerState.LEAVING else cause)
        if self._intake is None:
            return
        if state is WorkerState.BOOTING:
            self._fail_to_boot(cause, for_good=ending.for_good)
        elif state is not WorkerState.LEAVING and not worker.replica.stats().accepted:
            self._rest(SHORTEST_PAUSE)  # the next one may fail the same way
        self._fill()
