"""Restart without loss: this process starts a new generation with its sockets, and leaves once the new one serves.

The new generation runs the same command in the same environment, in the directory of the same name. It receives the sockets by the protocol of
`socketkit._system.activation`, and reports that it serves by a byte on a pipe. Until then this process serves unchanged, even if
that report never comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import attrs

from socketkit._system import activation, children, init, notify
from socketkit._system.threads import aside
from socketkit.logs import Log
from socketkit.seams import Serving

log = Log("socketkit.lifecycles.graceful")

SLICE = 0.05
"""Seconds between checks whether the new generation has ended or is no longer wanted."""

GRACE = 2.0
"""Seconds that an unwanted generation gets to end by itself."""


class Restart:
    """Restarts of this process: any number may fail, and one may succeed."""

    def __init__(self, serving: Serving, timeout: float, drain: float | None) -> None:
        self._serving = serving
        self._timeout = timeout
        self._drain = drain
        self._place = _Place.here()
        self._under_way = threading.Lock()
        self._over = threading.Event()  # this process no longer accepts requests
        self.done = False  # another process serves instead

    def ask(self) -> None:
        """Start a new generation and hand over to it once it serves. Safe in a signal handler."""
        aside(self._restart)

    def end(self) -> None:
        """Record that this process stops. A new generation that does not serve yet is ended; wait for that, within limits."""
        self._over.set()
        if not self.done:
            self._under_way.acquire(timeout=3 * GRACE)

    def _restart(self) -> None:
        if not self._under_way.acquire(blocking=False):
            log.warning("restart ignored: %s", "another process serves already" if self.done else "one is under way")
            return
        notify.reloading()
        try:
            problem = self._start()
        except Exception as error:
            log.exception("a new generation could not be started")
            problem = str(error)
        if problem:
            log.error("restart failed, and this process goes on serving: %s", problem)
            self._under_way.release()  # before the manager hears of it, and may ask for another restart
            notify.send("READY=1", f"STATUS=restart failed: {problem}")
        else:
            self._leave()

    def _start(self) -> str:
        """Start a new generation and wait until it serves; return what went wrong, or ""."""
        if os.getpid() == 1 or init.waits_for_this_process():
            return "process 1 ends with this process, and every other process would end with it"
        folder = self._place.folder()
        if folder is None:
            return "the working directory does not exist any more"
        with contextlib.closing(Successor(folder)) as successor:
            problem = successor.wait(self._timeout, unwanted=self._over.is_set)
            if not problem:
                activation.hand_over()
                self.done = True
                notify.send("READY=1", f"MAINPID={successor.pid}")
        return problem

    def _leave(self) -> None:
        """Stop accepting requests. Running requests get the drain time even if no thread is free to start the drain."""
        log.info("another process serves from now on; this one finishes the requests that it has accepted")
        self._serving.hand_over()
        if not self._over.wait(self._drain):
            self._serving.stop(0)


@attrs.frozen
class _Place:
    """Where a process began to serve: its working directory, and the name in ``$PWD`` if that led there."""

    name: str
    status: os.stat_result | None

    @classmethod
    def here(cls) -> _Place:
        name = os.environ.get("PWD", "")
        leads_here = name.startswith("/") and _same(_status(name), _status("."))
        return cls(name if leads_here else "", _status("."))

    def folder(self) -> str | None:
        """Return the folder for a new generation; None if it has been removed.

        ``$PWD`` may be a symbolic link that a deployment has pointed at a new release, while the directory itself stays the old one.
        A program that has changed its directory since then keeps the directory.
        """
        if self.name and _same(self.status, _status(".")) and os.path.isdir(self.name):  # noqa: PTH112 - the rest of this module uses os
            return self.name
        try:
            return os.getcwd()  # noqa: PTH109 - the same
        except OSError:
            return None


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - the rest of this module uses os
    except OSError:
        return None


def _same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)


class Successor:
    """A new generation, from its start until it serves. Its creator owns it; `close` ends it if it does not serve.

    Raises: OSError if it cannot be started.
    """

    def __init__(self, folder: str) -> None:
        estate = activation.estate()
        self._serves = False
        self._ended = False
        self._reader, writer = os.pipe()
        try:
            descriptors = [*(fileno for _, fileno in estate), writer]
            ready = activation.FIRST + len(estate)
            names = ":".join(name for name, _ in estate)
            variables = {"LISTEN_FDS": str(len(estate)), "LISTEN_FDNAMES": names, "SOCKETKIT_READY_FD": str(ready)}
            self.pid = _spawn(folder, descriptors, variables)
        except BaseException:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)

    def wait(self, timeout: float, unwanted: Callable[[], bool]) -> str:
        """Wait until it serves, for `timeout` seconds at most; return why it does not, or ""."""
        poll, end = select.poll(), time.monotonic() + timeout
        poll.register(self._reader, select.POLLIN)
        while not poll.poll(SLICE * 1000):
            if unwanted():
                return "this process was told to stop before the new one served"
            if time.monotonic() > end:
                return f"the new one was not ready within {timeout:g} s"
        if os.read(self._reader, 1):
            self._serves = True
            return ""
        how = self._end_within(GRACE)
        return f"the new one ended with {how}" if how else "the new one closed SOCKETKIT_READY_FD without reporting that it serves"

    def close(self) -> None:
        """End the new generation unless it serves or has ended."""
        os.close(self._reader)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._serves and not self._ended:
                children.send_signal(self.pid, number)
                self._end_within(GRACE)

    def _end_within(self, seconds: float) -> str:
        """Wait for the new generation to end; return how it ended, or "" if it still runs."""
        end = time.monotonic() + seconds
        while True:
            try:
                done, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the program reaps its children itself, or lets the system do it
                self._ended = True
                return "an exit code that other code has collected"
            if done:
                self._ended = True
                return children.how_it_ended(os.waitstatus_to_exitcode(status))
            if time.monotonic() > end:
                return ""
            time.sleep(SLICE)


def _spawn(folder: str, descriptors: list[int], variables: dict[str, str]) -> int:
    """Start this process's command in the folder, with these descriptors, numbered from `activation.FIRST`; return its pid.

    It does not fork, because other threads may hold locks. A shell puts the pid into the environment: only the new process knows it.
    The shell's ``cd`` also makes ``PWD`` the folder's name.
    """
    import fcntl  # noqa: PLC0415 - only systems with restart signals have it

    free = activation.FIRST + len(descriptors)
    environment, pids = {**os.environ, **variables}, ["LISTEN_PID"]
    if environment.get("WATCHDOG_PID") == str(os.getpid()):
        pids.append("WATCHDOG_PID")
    script = f'export {" ".join(f"{name}=$$" for name in pids)}; cd "$0" && exec "$@"'
    copies: list[int] = []
    try:
        for fileno in descriptors:  # copy above the final numbers, so that none is overwritten before it is copied
            copies.append(fcntl.fcntl(fileno, fcntl.F_DUPFD_CLOEXEC, free))  # noqa: PERF401 - if one fails, close those already made
        return os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", script, folder, *sys.orig_argv],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies, activation.FIRST)],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE,),
        )
    finally:
        for copy in copies:
            os.close(copy)
