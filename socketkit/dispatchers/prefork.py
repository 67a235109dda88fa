"""Worker processes that share the listeners, each with a dispatcher of its own, and a parent that looks after them.

The parent takes no request. It waits for its workers' words and ends; see `socketkit.dispatchers._worker` for their side.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import attrs

from socketkit.dispatchers._processes import fork, how_it_ended, keep_private, pidfd, reap, send_signal, wait_any
from socketkit.dispatchers._worker import DUE, FORCE, GOING, LEAVE, PING, READY, STOP, Worker
from socketkit.errors import BootError
from socketkit.recipes import at_least, seconds, seconds_or_none
from socketkit.seams import Branch, Dispatcher, Seconds, Work

log = logging.getLogger(__name__)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before another worker is started after one that failed to boot: doubling from the one to the other."""

GRACE = 1.0
"""Seconds that a worker has to end by itself after it was told to end at once."""

LOOKS = 4
"""How often within `hang_timeout` each worker is asked whether it is there."""


def _inner(_recipe: Any, field: Any, value: Any) -> None:
    is_recipe = callable(getattr(value, "start", None)) and not isinstance(value, type)
    if value is not None and not is_recipe:
        raise ValueError(f"{field.name} must be a dispatcher, such as Sync(), not {value!r}")
    if getattr(value, "forks_workers", False):
        raise ValueError(f"{field.name} must be a dispatcher that forks no workers itself; give prefork more workers instead")


def _some_time_or_none(recipe: Any, field: Any, value: Any) -> None:
    seconds_or_none(recipe, field, value)
    if value == 0:
        raise ValueError(f"{field.name} must be more than 0 seconds, or nothing for never")


def _part_of_one(_recipe: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{field.name} must be a number from 0 to less than 1, not {value!r}")


@attrs.frozen
class Prefork:
    """A fixed number of worker processes, each serving with an inner dispatcher; one that dies is replaced."""

    workers: int = attrs.field(default=0, validator=at_least(0))
    """How many processes; 0: as many as there are cores for this program."""
    inner: Dispatcher | None = attrs.field(default=None, validator=_inner)
    """What each worker serves with; None: what a server without a dispatcher serves with."""
    max_requests: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """After about so many requests a worker is replaced; None: never."""
    max_rss: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """A worker that has more bytes in memory after a request is replaced; None: however many."""
    max_age: Seconds | None = attrs.field(default=None, kw_only=True, validator=_some_time_or_none)
    """After about so long a worker is replaced; None: never."""
    jitter: float = attrs.field(default=0.1, kw_only=True, validator=_part_of_one)
    """By how much of themselves `max_requests` and `max_age` may be less, at random, so that workers do not all go at once."""
    drain: Seconds | None = attrs.field(default=30.0, kw_only=True, validator=seconds_or_none)
    """How long a worker that is replaced, or has lost its parent, may go on with its requests; None: as long as they like."""
    boot_timeout: Seconds = attrs.field(default=30.0, kw_only=True, validator=seconds)
    """How long a worker may take until it takes requests."""
    boots: int = attrs.field(default=5, kw_only=True, validator=at_least(1))
    """After so many workers in a row that failed to boot the server ends with a `BootError`."""
    hang_timeout: Seconds | None = attrs.field(default=None, kw_only=True, validator=_some_time_or_none)
    """A worker in which nobody has looked for a request for so long, and no request has ended, is replaced; None: never."""

    forks_workers: ClassVar[bool] = True

    @property
    def requires(self) -> frozenset[str]:
        """What the platform must have: fork, and what the inner dispatcher needs."""
        return frozenset({"fork", *getattr(self.inner, "requires", {"threads"})})

    @property
    def kinds(self) -> tuple[str, ...]:
        """What kinds of request the inner dispatcher runs."""
        return tuple(getattr(self.inner, "kinds", ("stream", "datagram")))

    @property
    def runs_async(self) -> bool:
        """Whether the inner dispatcher runs asynchronous handlers."""
        return getattr(self.inner, "runs_async", False)

    def start(self, work: Work) -> _Prefork:
        """Return the live part."""
        return _Prefork(self, work)


def cores() -> int:
    """Return how many cores this program may use."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _State(enum.Enum):
    BOOTING = enum.auto()
    SERVING = enum.auto()
    DUE = enum.auto()  # serving until a successor is
    LEAVING = enum.auto()


@attrs.define(eq=False)
class _Process:
    """A worker as its parent sees it."""

    pid: int
    channel: socket.socket
    exit_descriptor: int | None
    """Its pidfd; None where there is none, and the end of the channel says it."""
    branch: Branch
    state: _State = _State.BOOTING
    verdict: str = ""
    """Why its parent ended it."""
    heard: float = attrs.field(factory=time.monotonic)
    settled: int = -1

    def say(self, word: str) -> None:
        with contextlib.suppress(OSError):  # it is gone, which will be heard of
            self.channel.send(word.encode())

    def hear(self) -> str | None:
        """Return the words that have come, "" if there are none, and None if there will be none any more."""
        try:
            return self.channel.recv(64).decode() or None
        except BlockingIOError:
            return ""
        except OSError:
            return None

    def close(self) -> None:
        self.channel.close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)


class _Prefork:
    """The live part, in the parent. Everything happens in the thread that serves."""

    def __init__(self, recipe: Prefork, work: Work) -> None:
        self._recipe = recipe
        self._work = work
        self._target = recipe.workers or cores()
        self._processes: dict[int, _Process] = {}
        self._intake: Any = None  # while there is a drive
        self._failures = 0  # to boot, in a row
        self._pause = SHORTEST_PAUSE
        self._resting = False  # after a failure to boot
        self._looked = 0.0  # when the workers were last asked whether they are there
        self._error: BaseException | None = None

    # --- serving ---------------------------------------------------------------------------------------------------------

    def drive(self, open_intake: Callable[..., Any]) -> None:
        """Keep the workers up until the intake is stopped, then tell them to finish."""
        _warn_of_threads()
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
                    self._dismiss(process)
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None) -> bool:
        """Wait until every worker has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._collect():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait_any(self._processes, left)
        return True

    def force(self) -> None:
        """Have every worker shut down the sockets of its requests."""
        for process in self._processes.values():
            self._hurry(process)

    def close(self) -> None:
        """End every worker that is left."""
        for pid in self._processes:
            send_signal(pid, signal.SIGKILL)
        for process in list(self._processes.values()):
            self._bury(process, reap(process.pid, block=True) or 0)

    # --- starting --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start as many workers as are missing, unless it is time to rest."""
        while not self._resting and not self._intake.stopped and self._count(_State.BOOTING, _State.SERVING) < self._target:
            self._hire()

    def _has(self, process: _Process) -> bool:
        """Return whether the worker has not been buried: its pid is still its own."""
        return self._processes.get(process.pid) is process

    def _count(self, *states: _State) -> int:
        return sum(process.state in states for process in self._processes.values())

    def _hire(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        keep_private(ours)
        branch = self._work.branch()
        worker = Worker(self._recipe, theirs, self._at_random(self._recipe.max_requests))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none shall meet the parent's handlers in the child
        try:
            pid = fork(lambda: self._become(worker, branch))
        except OSError as error:
            ours.close()
            branch.close()
            self._fail_to_boot(f"no process: {error}", hopeless=not self._processes)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        process = self._processes[pid] = _Process(pid, ours, pidfd(pid), branch)
        self._watch(process)
        self._intake.call_later(self._recipe.boot_timeout, partial(self._check_boot, process))
        if self._recipe.max_age is not None:
            self._intake.call_later(self._at_random(self._recipe.max_age), partial(self._retire, process))

    def _become(self, worker: Worker, branch: Branch) -> int:
        """In the child: close what is the parent's, and be the worker."""
        for process in self._processes.values():
            process.close()
        return worker.serve(branch)

    def _at_random(self, limit: Any) -> Any:
        """Return the limit less a random part of it."""
        if limit is None:
            return None
        less = limit * (1 - self._recipe.jitter * random.random())  # noqa: S311 - no secret
        return max(1, round(less)) if isinstance(limit, int) else less

    def _watch(self, process: _Process) -> None:
        self._intake.watch(process.channel.fileno(), partial(self._listen, process))
        if process.exit_descriptor is not None:
            self._intake.watch(process.exit_descriptor, partial(self._look, process))

    def _check_boot(self, process: _Process) -> None:
        if process.state is _State.BOOTING and self._has(process):
            self._abort(process, f"it was not ready within {self._recipe.boot_timeout:g} s")

    def _fail_to_boot(self, cause: str, *, hopeless: bool = True) -> None:
        """Rest before the next attempt; give up after too many."""
        self._failures += 1
        if hopeless and self._failures >= self._recipe.boots:
            self._error = BootError(self._failures, cause)
            self._intake.stop()
        elif not self._resting:
            log.warning("the next worker is started in %.1f s", self._pause)
            self._rest(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _rest(self, pause: float) -> None:
        if not self._resting:
            self._resting = True
            self._intake.call_later(pause, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._fill()

    # --- hearing ---------------------------------------------------------------------------------------------------------

    def _listen(self, process: _Process) -> None:
        """Hear what the worker says. Its silence for ever is its end, where no other descriptor tells of that."""
        words = process.hear()
        for word in words or "":
            self._hear(process, word)
        if words is None and self._has(process):
            self._intake.unwatch(process.channel.fileno())
            if process.exit_descriptor is None:
                self._look(process)

    def _hear(self, process: _Process, word: str) -> None:
        process.heard = time.monotonic()
        if word == READY and process.state is _State.BOOTING:
            process.state = _State.SERVING
            self._failures, self._pause = 0, SHORTEST_PAUSE
            log.info("worker %d is ready", process.pid)
            process.branch.begun(process.pid)
            self._relieve()
        elif word == DUE:
            self._retire(process)
        elif word == GOING:
            process.state = _State.LEAVING
            self._limit_drain(process)
            self._fill()
        elif word == STOP:
            process.state = _State.LEAVING
            self._intake.stop()

    def _retire(self, process: _Process) -> None:
        """Start a successor; the worker serves until there is one."""
        if process.state is _State.SERVING and self._has(process):
            process.state = _State.DUE
            self._fill()

    def _relieve(self) -> None:
        """Let a worker go whose successor has come."""
        due = [process for process in self._processes.values() if process.state is _State.DUE]
        if due and self._count(_State.SERVING, _State.DUE) > self._target:
            self._dismiss(due[0])
            self._limit_drain(due[0])

    def _look(self, process: _Process) -> None:
        """Bury the worker if it has ended."""
        if not self._has(process):
            return
        code = reap(process.pid)
        if code is not None:
            self._bury(process, code)
        elif process.exit_descriptor is None:
            self._intake.call_later(0.01, partial(self._look, process))  # it has closed its channel, and is about to end

    # --- ending ----------------------------------------------------------------------------------------------------------

    def _dismiss(self, process: _Process) -> None:
        process.state = _State.LEAVING
        process.say(LEAVE)

    def _limit_drain(self, process: _Process) -> None:
        if self._recipe.drain is not None:
            self._intake.call_later(self._recipe.drain, partial(self._expel, process))

    def _hurry(self, process: _Process) -> None:
        process.say(FORCE)
        send_signal(process.pid, signal.SIGTERM)

    def _expel(self, process: _Process) -> None:
        """Its drain is over."""
        if self._has(process):
            self._hurry(process)
            self._intake.call_later(GRACE, partial(self._kill, process))

    def _abort(self, process: _Process, verdict: str) -> None:
        """End a worker that is of no use, so that it shows where its threads stand."""
        log.error("worker %d is ended: %s", process.pid, verdict)
        process.verdict = verdict
        send_signal(process.pid, signal.SIGABRT)
        self._intake.call_later(GRACE, partial(self._kill, process))

    def _kill(self, process: _Process) -> None:
        if self._has(process):
            send_signal(process.pid, signal.SIGKILL)

    def _collect(self) -> bool:
        """Bury the workers that have ended; return whether all have."""
        for process in list(self._processes.values()):
            code = reap(process.pid)
            if code is not None:
                self._bury(process, code)
        return not self._processes

    def _bury(self, process: _Process, code: int) -> None:
        """Take leave of a worker that has ended, and see to a replacement."""
        if self._intake is not None:
            for word in process.hear() or "":  # its last words
                self._hear(process, word)
            self._intake.unwatch(process.channel.fileno())
            if process.exit_descriptor is not None:
                self._intake.unwatch(process.exit_descriptor)
        del self._processes[process.pid]
        process.close()
        cause = f"{process.verdict} ({how_it_ended(code)})" if process.verdict else how_it_ended(code)
        stats, state = process.branch.stats(), process.state
        served = sum(stats.outcomes.values())
        if state is not _State.LEAVING:
            log.error("worker %d died: %s; it had served %d requests", process.pid, cause, served)
        elif code:
            log.warning("worker %d had to be ended: %s; it had served %d requests", process.pid, cause, served)
        else:
            log.info("worker %d has left; it had served %d requests", process.pid, served)
        process.branch.close(process.pid, "" if state is _State.LEAVING else cause)
        if self._intake is None:
            return
        if state is _State.BOOTING:
            self._fail_to_boot(cause)
        elif state is not _State.LEAVING and not stats.accepted:
            self._rest(SHORTEST_PAUSE)  # the next one may fare no better
        self._fill()

    # --- those that hang -------------------------------------------------------------------------------------------------

    def _look_after(self, limit: float) -> None:
        """Ask every worker whether it is there, and end those from which no sign of life has come for too long."""
        now = time.monotonic()
        asleep, self._looked = now - self._looked > limit / 2, now  # this process itself, or all of them
        for process in self._processes.values():
            if process.state not in {_State.SERVING, _State.DUE} or process.verdict:
                continue
            settled = sum(process.branch.stats().outcomes.values())
            if asleep or settled != process.settled:
                process.settled, process.heard = settled, now
            if now - process.heard > limit:
                self._abort(process, f"it has not answered for {now - process.heard:.1f} s")
            else:
                process.say(PING)
        self._intake.call_later(limit / LOOKS, partial(self._look_after, limit))


def _warn_of_threads() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        log.warning(
            "workers are forked while other threads run (%s): a lock that one of them holds stays locked in a worker; "
            "serve in the main thread, by serve_forever(), before there are others",
            ", ".join(others),
        )
