"""Serving with a graceful stop: signals start it, running requests may finish, and late ones are shut down."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import attrs

from socketkit._system import activation, notify
from socketkit._system.children import FORCE, is_ended_by
from socketkit._system.credentials import group_id, primary_group, user_id
from socketkit._system.early_signals import is_free
from socketkit._system.signals import Handler, handling
from socketkit.lifecycles._privileges import give_up
from socketkit.lifecycles._restart import Restart
from socketkit.logs import Log
from socketkit.seams import Seconds, Serving
from socketkit.seams.stats import DrainReport
from socketkit.seams.validators import seconds, seconds_or_none

log = Log(__name__)


def _unprivileged(_recipe: Any, field: Any, value: Any) -> None:
    if value is not None and user_id(value) == 0:
        raise ValueError(f"{field.name} must be a user without root's privileges, not {value!r}")


def _group(recipe: Graceful, field: Any, value: Any) -> None:
    if value is not None and recipe.user is None:
        raise ValueError(f"{field.name} needs user; give both, or neither")
    if value is not None:
        group_id(value)
    elif recipe.user is not None:
        primary_group(recipe.user)


@attrs.frozen
class Graceful:
    """On SIGINT or SIGTERM, close the listeners, let running requests finish for `drain` seconds, then shut them down.

    Signals are handled only while the main thread serves; the previous handlers are restored afterwards. The first signal starts the
    lame duck and then the drain, the second ends both immediately, and the third exits the process with status 128 + signal.
    """

    drain: Seconds | None = attrs.field(default=30.0, validator=seconds_or_none)
    """How long running requests may continue; None: no limit."""
    signals: bool = attrs.field(default=True, kw_only=True)
    """False: handle no signals, so that the program can."""
    lame_duck: Seconds = attrs.field(default=0.0, kw_only=True, validator=seconds)
    """How long the server still accepts requests after it is told to stop. `Server.ready` is already false, for health checks."""

    restart: bool = attrs.field(default=True, kw_only=True)
    """On SIGUSR2, start a new generation of the program with this one's sockets, and stop once it serves. Only with `signals`, and
    only if the program has no SIGUSR2 handler of its own."""
    restart_timeout: Seconds = attrs.field(default=60.0, kw_only=True, validator=seconds)
    """How long a new generation may take to start serving. After that it is ended, and this one continues."""
    user: str | int | None = attrs.field(default=None, kw_only=True, validator=_unprivileged)
    """The user, by name or ID, that the whole process becomes once all listeners are open, before it takes the first request. It must be
    started as root, or as that user. Supplementary groups are given up, too. None: the process stays what it is."""
    group: str | int | None = attrs.field(default=None, kw_only=True, validator=_group)
    """The group that the process gets with `user`, by name or ID. None: that user's primary group."""

    @property
    def requires(self) -> frozenset[str]:
        """Platform features that the options need."""
        return frozenset({"setresuid"} if self.user is not None else ())

    def serve(self, serving: Serving) -> DrainReport:
        """Run and drain; return the report. In the main thread, also handle signals and notify the service manager.

        Raises: PrivilegeError; then the listeners are closed, and what they have queued is not served.
        """
        if threading.current_thread() is not threading.main_thread():
            return self._serve(serving, lambda: None)
        foreground = _Foreground(serving, Restart(serving, self.restart_timeout, self.drain))
        handlers: dict[int, Handler] = dict.fromkeys(_STOP if self.signals else (), foreground.on_stop)
        if self.signals and self.restart:
            free = [number for number in _RESTART if is_free(number)]
            handlers.update(dict.fromkeys(free, foreground.on_restart))
        if self.signals and FORCE is not None and is_free(FORCE):
            handlers[FORCE] = foreground.on_force
        with handling(handlers):
            return self._serve(serving, foreground.end)

    def _serve(self, serving: Serving, ending: Callable[[], object]) -> DrainReport:
        unprivileged = False
        try:
            if self.user is not None:
                give_up(self.user, self.group)
            unprivileged = True
            serving.run()
        finally:
            ending()
            report = serving.drain(self.drain, queue=unprivileged)
        return report


_STOP = (signal.SIGINT, signal.SIGTERM)
_RESTART = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") and hasattr(os, "posix_spawn") else ()


class _Foreground:
    """Serving in the main thread: handles the process's signals and reports its readiness."""

    def __init__(self, serving: Serving, handover: Restart) -> None:
        self._serving = serving
        self._handover = handover
        self._pid = os.getpid()
        self._received = 0  # number of stop signals received
        self._was_ready = False
        self._told = False  # the service manager knows that this process stops
        serving.on_ready(self._ready)
        limit = notify.watchdog()
        if limit is not None:
            serving.on_ready(notify.ping, limit / 2)

    def on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Stop; immediately on the second signal; exit the process on the third."""
        if os.getpid() != self._pid:  # a child: Ctrl-C reaches it too, but its parent decides
            if number == signal.SIGTERM and not is_ended_by(self._pid, self.on_force):
                os._exit(128 + number)
            return
        self._received += 1
        if self._received > 2:  # noqa: PLR2004 - stop, force, leave
            os._exit(128 + number)
        self._tell_stopping()
        if self._received > 1:
            self._serving.stop(0.0)
            return
        self._serving.stop(None)
        work = self._serving.in_work()
        again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        log.announce("stopping: %s%s", work, f"; {again} again to cut {'them' if work.requests > 1 else 'it'}" if work.requests else "")

    def on_force(self, _number: int, _frame: FrameType | None) -> None:
        """In a child that serves a request, end it: only the parent sends this. A child with its own SIGTERM handler is sent that next."""
        if os.getpid() != self._pid and signal.getsignal(signal.SIGTERM) == self.on_stop:
            os._exit(128 + signal.SIGTERM)

    def on_restart(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._handover.ask()

    def end(self) -> None:
        """Record that the server no longer accepts requests."""
        self._handover.end()
        self._tell_stopping()

    def _ready(self) -> None:
        self._was_ready = True
        unclaimed = activation.close_unclaimed()
        if unclaimed:
            log.warning("no server listens any more on %s", ", ".join(unclaimed))
        if not activation.report_ready():  # else the previous generation reports for both until the service manager knows this one
            notify.ready()

    def _tell_stopping(self) -> None:
        if self._was_ready and not self._handover.done and not self._told:
            self._told = True
            notify.stopping()
