"""A worker process, from the inside: its messages to and from the supervisor, and when it leaves."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from socketkit._system import children, signals
from socketkit._system.children import drop_exit_functions, keep_private, run_exit_functions
from socketkit._system.early_signals import is_free
from socketkit._system.threads import aside
from socketkit.dispatchers._supervision.handle import CLOSE, DUE, FORCE, GOING, HERE, LEAVE, READY, RENEW, STOP, hear, say
from socketkit.logs import Log

if TYPE_CHECKING:
    from socketkit._engine.intake import Intake
    from socketkit.dispatchers.prefork import Prefork
    from socketkit.seams import Replica, Serving

log = Log("socketkit.dispatchers.prefork")

LOOK_EVERY = 1.0
"""Seconds between checks of the memory in use."""

BACKSTOP = 1.0
"""Seconds after its drain at which a worker without a parent is killed, whatever it is doing."""


class ProcessWorker:
    """One worker, in the main thread of its own process; `channel` connects it to its parent.

    Messages on the channel also raise SIGIO, so that they are handled even while a handler occupies the main thread.
    """

    def __init__(self, recipe: Prefork, channel: socket.socket, most_requests: int | None) -> None:
        self._recipe = recipe
        self._pid = 0  # once it serves
        self._channel = channel
        self._most_requests = most_requests
        self._serving: Serving | None = None
        self._intake: Intake | None = None
        self._leaving = False
        self._closing = False  # and no other process continues to serve the listeners
        self._orphaned = False
        self._due = False
        self._next_look = 0.0

    def serve(self, replica: Replica) -> int:
        """Return the exit code."""
        self._pid = os.getpid()
        try:
            drop_exit_functions()
            keep_private(self._channel)
            _dump_stacks_when_aborted()
            self._handle_signals()
            counts = any(each is not None for each in (self._most_requests, self._recipe.max_rss, self._recipe.hang_timeout))
            self._serving = replica.enter(self._recipe.inner, self._opened, self._settled if counts else None)
            self._serving.run()
            if not self._leaving:  # the server was stopped from within, by a handler
                self._leaving = self._closing = True
                say(self._channel, STOP)
            self._serving.drain(self._recipe.drain if self._orphaned else None, queue=self._closing)  # otherwise the parent limits the time
            run_exit_functions()
        except BaseException:
            log.exception("worker %d failed", os.getpid())
            return 1
        return 0

    def _opened(self, intake: Intake) -> None:
        self._intake = intake
        intake.watch(self._channel.fileno(), self._listen)
        _raise_sigio(self._channel)
        say(self._channel, READY)
        if self._leaving:
            intake.retire()

    def _handle_signals(self) -> None:
        """Have SIGTERM tell this worker to leave. The program's own handlers stay, and the lifecycle's do nothing in this process."""
        signals.ignore(signal.SIGINT)  # a terminal sends it to the parent too, which decides what it means
        signals.handle(signal.SIGTERM, self._on_sigterm)
        if children.FORCE is not None and (is_free(children.FORCE) or signals.is_handled_here(children.FORCE)):
            signals.handle(children.FORCE, self._on_force)
        signals.handle(signal.SIGIO, lambda _number, _frame: self._listen())
        sigterm = {signal.SIGTERM}  # held back during a fork, until the child has the program's handler again
        os.register_at_fork(
            before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, sigterm),
            after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, sigterm),
            after_in_child=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, sigterm),
        )
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_sigterm(self, number: int, _frame: Any) -> None:
        if os.getpid() != self._pid:  # a child of this worker
            if not children.is_ended_by(self._pid, self._on_force):
                os._exit(128 + number)
            return
        self._listen()
        if not self._leaving:
            say(self._channel, GOING)
            self._leave()

    def _on_force(self, _number: int, _frame: Any) -> None:
        """In a child that serves a request, end it. A child with its own SIGTERM handler is sent that next."""
        if os.getpid() != self._pid and signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            os._exit(128 + signal.SIGTERM)

    def _listen(self) -> None:
        """Handle the parent's messages. Runs in the thread that takes requests, and in signal handlers."""
        words = hear(self._channel)
        if words is None:
            self._lose_parent()
        for word in words or "":
            if word == FORCE:
                self._force()
            elif word in {LEAVE, CLOSE}:
                self._closing = word == CLOSE
                self._leave()
            elif word == RENEW:
                if self._serving is not None:
                    self._serving.renew()
            elif self._intake is not None:
                self._intake.call_soon(partial(say, self._channel, HERE))  # in the thread that takes requests: this proves that it responds

    def _lose_parent(self) -> None:
        if self._orphaned:
            return
        self._orphaned = self._closing = True
        if self._intake is not None:
            self._intake.call_soon(partial(self._intake.unwatch, self._channel.fileno()))
        if self._recipe.drain is not None:
            _end_within(self._recipe.drain + BACKSTOP)
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        if self._intake is not None:
            self._intake.retire()

    def _force(self) -> None:
        self._leaving = True
        if self._serving is None:
            os._exit(1)
        self._serving.stop(0)

    def _settled(self, count: int) -> None:
        """After each request: ask once for a successor if this worker has reached `max_requests` or exceeded `max_rss`."""
        has_done_its_share = self._most_requests is not None and count >= self._most_requests
        if not self._due and (has_done_its_share or self._has_grown()):
            self._due = True
            say(self._channel, DUE)

    def _has_grown(self) -> bool:
        limit, now = self._recipe.max_rss, time.monotonic()
        if limit is None or now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        return memory_in_use() > limit


def memory_in_use() -> int:
    """Return this process's resident memory in bytes; without /proc, its peak."""
    import resource  # noqa: PLC0415 - only systems with fork have it

    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE  # source: proc(5)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _raise_sigio(channel: socket.socket) -> None:
    """Have SIGIO sent to this process when the channel is readable. Source: fcntl(2), F_SETOWN and O_ASYNC."""
    import fcntl  # noqa: PLC0415 - only systems with fork have it

    with contextlib.suppress(OSError):  # then the parent's messages are handled only between requests
        fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(channel, fcntl.F_SETFL, fcntl.fcntl(channel, fcntl.F_GETFL) | os.O_ASYNC)


def _end_within(seconds: float) -> None:
    """Kill this process after that time: by an alarm signal, whatever it is doing, unless the program handles that signal itself."""

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    else:
        with contextlib.suppress(RuntimeError):  # the system has no thread left
            aside(kill)


def _dump_stacks_when_aborted() -> None:
    if not faulthandler.is_enabled():
        with contextlib.suppress(Exception):  # standard error is closed or is not a file
            faulthandler.enable(sys.stderr.fileno())  # given the stream, it would flush it and might block
