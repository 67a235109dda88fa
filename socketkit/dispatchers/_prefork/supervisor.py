"""The parent of prefork's worker processes: it starts, monitors, replaces and stops them.

It takes no requests. Everything here runs in the serving thread; see `socketkit.dispatchers._prefork.worker` for the other side.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from socketkit._system import logs
from socketkit._system.children import fork, how_it_ended, keep_private, pidfd, reap, send_signal, wait_any
from socketkit.dispatchers._prefork.handle import (
    CLOSE,
    DUE,
    FORCE,
    GOING,
    LEAVE,
    PING,
    READY,
    RENEW,
    STOP,
    WorkerHandle,
    WorkerState,
    hear,
    say,
)
from socketkit.dispatchers._prefork.worker import Worker
from socketkit.errors import BootError
from socketkit.logs import Log
from socketkit.seams import Replica, Work

if TYPE_CHECKING:
    from socketkit.dispatchers.prefork import Prefork

log = Log("socketkit.dispatchers.prefork")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds to wait after a worker fails to boot before starting the next: doubles from the first value up to the second."""

GRACE = 1.0
"""Seconds that a worker gets to end by itself after it was told to end at once."""

LOOKS = 4
"""Number of times within `hang_timeout` that each worker is asked to respond."""


class Supervisor:
    """The live part of `Prefork`."""

    def __init__(self, recipe: Prefork, work: Work) -> None:
        self._recipe = recipe
        self._work = work
        self._target = recipe.processes
        self._lines = 2 * self._target + 8  # most log lines of one kind in a burst
        self._processes: dict[int, WorkerHandle] = {}
        self._intake: Any = None  # set only during `drive`
        self._failures = 0  # failures to boot in a row
        self._pause = SHORTEST_PAUSE
        self._resting = False  # pausing after a failure to boot
        self._looked = 0.0  # monotonic time at which the workers were last asked to respond
        self._error: BaseException | None = None

    # --- serving ---------------------------------------------------------------------------------------------------------

    def drive(self, open_intake: Callable[..., Any]) -> None:
        self._failures, self._pause, self._resting, self._error = 0, SHORTEST_PAUSE, False, None
        with open_intake(listening=False) as intake, intake.woken_by_signals():
            self._intake = intake
            for left_over in self._processes.values():
                self._watch(left_over)
            try:
                self._fill()
                if self._recipe.hang_timeout is not None:
                    self._look_after(self._recipe.hang_timeout)
                while not intake.stopped:
                    intake.take()
            finally:
                self._intake = None
                for process in self._processes.values():
                    process.state = WorkerState.LEAVING
                    say(process.channel, CLOSE)
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._have_all_ended():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait_any(self._processes, left)
        return True

    def renew_workers(self) -> None:
        for process in self._processes.values():
            say(process.channel, RENEW)

    def force(self) -> None:
        for process in self._processes.values():
            self._hurry(process)

    def close(self) -> None:
        if not all(process.hurried for process in self._processes.values()):  # nobody has waited for them, as in a server without a drain
            self.force()
            self.wait(GRACE)
        for process in self._processes.values():
            self._kill(process)
        for process in list(self._processes.values()):
            self._bury(process, reap(process.pid, block=True) or 0)

    # --- starting --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while not self._resting and not self._intake.stopped and self._count(WorkerState.BOOTING, WorkerState.SERVING) < self._target:
            self._hire()

    def _has(self, process: WorkerHandle) -> bool:
        """Return whether the worker has not been reaped yet, so that its pid is still valid."""
        return self._processes.get(process.pid) is process

    def _count(self, *states: WorkerState) -> int:
        return sum(process.state in states for process in self._processes.values())

    def _hire(self) -> None:
        try:
            process = self._fork()
        except OSError as error:  # no process, descriptor or memory available
            self._fail_to_boot(str(error), hopeless=not self._processes)
            return
        self._processes[process.pid] = process
        self._watch(process)
        self._later(self._recipe.boot_timeout, self._check_boot, process)
        if self._recipe.max_age is not None:
            self._later(self._at_random(self._recipe.max_age), self._retire, process)

    def _fork(self) -> WorkerHandle:
        """Raises: OSError."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                theirs.setblocking(False)
                keep_private(ours)
                replica = self._work.branch()
                undo.callback(replica.close)
                worker = Worker(self._recipe, theirs, self._at_random(self._recipe.max_requests))
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the child has its own handlers
                try:
                    pid = fork(lambda: self._become(worker, replica))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            undo.pop_all()
        return WorkerHandle(pid, ours, pidfd(pid), replica)

    def _become(self, worker: Worker, replica: Replica) -> int:
        """In the child: return its exit code."""
        for process in self._processes.values():
            process.close()
        return worker.serve(replica)

    def _at_random(self, limit: Any) -> Any:
        """Return the limit reduced by a random fraction of up to `jitter`."""
        if limit is None:
            return None
        less = limit * (1 - self._recipe.jitter * random.random())  # noqa: S311 - not used for secrets
        return max(1, round(less)) if isinstance(limit, int) else less

    def _watch(self, process: WorkerHandle) -> None:
        self._intake.watch(process.channel.fileno(), partial(self._listen, process))
        if process.exit_descriptor is not None:
            self._intake.watch(process.exit_descriptor, partial(self._look, process))

    def _later(self, seconds: float, step: Callable[[WorkerHandle], None], process: WorkerHandle) -> None:
        """Take a step after this many seconds, unless the worker has ended by then."""
        self._intake.call_later(seconds, lambda: step(process) if self._has(process) else None)

    def _check_boot(self, process: WorkerHandle) -> None:
        if process.state is WorkerState.BOOTING:
            self._abort(process, f"it was not ready within {self._recipe.boot_timeout:g} s")

    def _fail_to_boot(self, cause: str, *, hopeless: bool = True) -> None:
        """Pause before the next attempt; stop the server after too many hopeless ones."""
        self._failures += 1
        if hopeless and self._failures >= self._recipe.boots:
            self._error = BootError(self._failures, cause)
            self._intake.stop()
        elif not self._resting:
            log.warning("cannot start a worker (%s); the next attempt is in %.1f s", cause, self._pause)
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

    def _listen(self, process: WorkerHandle) -> None:
        """Handle the worker's messages. Without a pidfd, the end of the channel means that the worker ends."""
        words = hear(process.channel)
        for word in words or "":
            self._hear(process, word)
        if words is None and self._has(process):
            self._intake.unwatch(process.channel.fileno())
            if process.exit_descriptor is None:
                self._look(process)

    def _hear(self, process: WorkerHandle, word: str) -> None:
        process.heard = time.monotonic()
        if word == READY and process.state is WorkerState.BOOTING:
            process.state = WorkerState.SERVING
            self._failures, self._pause = 0, SHORTEST_PAUSE
            log.info("worker %d is ready", process.pid, few=self._lines)
            process.replica.begun(process.pid)
            self._relieve()
        elif word == DUE:
            self._retire(process)
        elif word == GOING:
            self._let_leave(process)
            self._fill()
        elif word == STOP:
            process.state = WorkerState.LEAVING
            self._intake.stop()

    def _retire(self, process: WorkerHandle) -> None:
        """Start a successor. The worker keeps serving until the successor is ready."""
        if process.state is WorkerState.SERVING:
            process.state = WorkerState.DUE
            self._fill()

    def _relieve(self) -> None:
        due = [process for process in self._processes.values() if process.state is WorkerState.DUE]
        if due and self._count(WorkerState.SERVING, WorkerState.DUE) > self._target:
            say(due[0].channel, LEAVE)
            self._let_leave(due[0])

    def _look(self, process: WorkerHandle) -> None:
        """Reap and remove the worker if it has ended."""
        code = reap(process.pid)
        if code is not None:
            self._bury(process, code)
        elif process.exit_descriptor is None and self._intake is not None:
            self._later(0.01, self._look, process)  # it closed its channel and is about to end

    # --- ending ----------------------------------------------------------------------------------------------------------

    def _let_leave(self, process: WorkerHandle) -> None:
        process.state = WorkerState.LEAVING
        if self._recipe.drain is not None:
            self._later(self._recipe.drain, self._expel, process)

    def _hurry(self, process: WorkerHandle) -> None:
        process.hurried = True
        say(process.channel, FORCE)
        send_signal(process.pid, signal.SIGTERM)

    def _expel(self, process: WorkerHandle) -> None:
        """Hurry a worker whose drain time is over, then kill it."""
        self._hurry(process)
        self._later(GRACE, self._kill, process)

    def _abort(self, process: WorkerHandle, verdict: str) -> None:
        """End a useless worker with SIGABRT, so that it dumps the stacks of its threads."""
        log.error("the supervisor aborts worker %d: %s", process.pid, verdict, few=self._lines)
        process.verdict = verdict
        logs.flush(logs.SHORT_PATIENCE)  # otherwise that line and the stacks may end up in each other
        send_signal(process.pid, signal.SIGABRT)
        self._later(GRACE, self._kill, process)

    def _kill(self, process: WorkerHandle) -> None:
        process.killed = True
        send_signal(process.pid, signal.SIGKILL)

    def _have_all_ended(self) -> bool:
        """Reap and remove the workers that have ended; return whether all have."""
        for process in list(self._processes.values()):
            self._look(process)
        return not self._processes

    def _bury(self, process: WorkerHandle, code: int) -> None:
        """Remove a worker that has ended, log how it ended, and start a replacement."""
        if self._intake is not None:
            for word in hear(process.channel) or "":  # its last messages
                self._hear(process, word)
            self._intake.unwatch(process.channel.fileno())
            if process.exit_descriptor is not None:
                self._intake.unwatch(process.exit_descriptor)
        del self._processes[process.pid]
        process.close()
        killed = process.killed and code == -signal.SIGKILL
        how = signal.SIGKILL.name if killed else how_it_ended(code)
        cause = f"{process.verdict} ({how})" if process.verdict else how
        state, count = process.state, process.replica.served()
        served = f"it had served {count} request{'s' * (count != 1)}"
        if state is not WorkerState.LEAVING:
            log.error("worker %d died: %s; %s", process.pid, cause, served, few=self._lines)
        elif killed:
            log.warning("worker %d did not end in time, so it was killed; %s", process.pid, served, few=self._lines)
        elif code:
            log.warning("worker %d did not end by itself: %s; %s", process.pid, cause, served, few=self._lines)
        else:
            log.info("worker %d has left; %s", process.pid, served, few=self._lines)
        process.replica.close(process.pid, "" if state is WorkerState.LEAVING else cause)
        if self._intake is None:
            return
        if state is WorkerState.BOOTING:
            self._fail_to_boot(cause)
        elif state is not WorkerState.LEAVING and not process.replica.stats().accepted:
            self._rest(SHORTEST_PAUSE)  # the next one may fail the same way
        self._fill()

    # --- hanging workers -------------------------------------------------------------------------------------------------

    def _look_after(self, limit: float) -> None:
        """Ask every worker to respond; end those that for `limit` seconds have neither responded nor finished a request."""
        now = time.monotonic()
        asleep, self._looked = now - self._looked > limit / 2, now  # this process was suspended, or the whole system was
        for process in self._processes.values():
            if process.state not in {WorkerState.SERVING, WorkerState.DUE} or process.verdict:
                continue
            served = process.replica.served()
            if asleep or served != process.served:
                process.served, process.heard = served, now
            if now - process.heard > limit:
                self._abort(process, f"it has not answered for {now - process.heard:.1f} s")
            else:
                say(process.channel, PING)
        self._intake.call_later(limit / LOOKS, partial(self._look_after, limit))
