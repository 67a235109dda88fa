"""Child processes, for dispatchers that fork: start one, wait for that one only, describe how it ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import re  # noqa: F401 - `warnings.filterwarnings` imports it, which would fail after a change of the root folder
import select
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable

from socketkit._system import logs
from socketkit._system.forking import forks
from socketkit._system.threads import BackgroundThread

log = logs.Log("socketkit.forks")


def fork(run: Callable[[], int]) -> int:
    """Return the pid of a new child that calls `run` and exits with its result, or with 1 if it raises.

    The child flushes its standard streams and exits by `os._exit`, so none of the parent's clean-up runs in it. The parent flushes its
    streams before it forks, or buffered output would appear twice. Neither waits long for a slow reader.

    The first fork beside threads that may hold locks is logged, with their names. Python's own warning is ignored.
    """
    _warnings.log_threads()
    _warnings.ignore_pythons()
    if logs.flush(logs.SHORT_PATIENCE):  # so that usually the emitter thread has ended before the fork
        logs.flush_streams()
    _forking.add(threading.get_ident())
    try:
        pid = os.fork()
    finally:
        _forking.discard(threading.get_ident())
    if pid:
        return pid
    with contextlib.suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)  # otherwise signals to the child would wake the parent's loop
    status = 1
    try:
        status = run()
    finally:
        logs.leave(status)


class _Warnings:
    """Forks beside threads: one line in the log for the first, in place of Python's warning."""

    def __init__(self) -> None:
        self._logged = False
        self._filter: object = None

    def log_threads(self) -> None:
        """Log, once, which threads run that may hold a lock. The library's background threads hold none that a child needs."""
        if self._logged:
            return
        ours = threading.current_thread()
        others = [each.name for each in threading.enumerate() if each is not ours and not isinstance(each, BackgroundThread)]
        if others:
            self._logged = True
            log.warning(
                "this process forks while other threads run (%s): a lock that one of these holds stays locked in the child; "
                "serve in the main thread, before other threads start, and in a process without other servers",
                ", ".join(others),
            )

    def ignore_pythons(self) -> None:
        """Make a filter the first one of `warnings`, unless it still is: ignore Python's warning that this module forks beside threads.

        Python also counts threads that have just ended. If its warning is made an error, Python 3.15 raises it after the fork, and the
        child is lost: neither waited for nor stopped. Source: CPython's Modules/posixmodule.c, `warn_about_fork_with_threads`.
        """
        if self._filter is None or self._filter not in warnings.filters[:1]:
            text, module = r"This process \(pid=\d+\) is multi-threaded, use of fork\(\)", __name__.replace(".", r"\.")
            warnings.filterwarnings("ignore", text, DeprecationWarning, rf"{module}\Z")
            self._filter = warnings.filters[0]


_warnings = _Warnings()


def drop_exit_functions() -> None:
    """In a forked child that will call `run_exit_functions`: leave what was registered before the fork to the parent.

    The parent's `multiprocessing` children are forgotten too; at its exit this process would end them. Source: CPython's
    multiprocessing/popen_fork.py and multiprocessing/process.py, `_launch` and `_bootstrap`; weakref.py, `finalize`.
    """
    atexit._clear()  # noqa: SLF001 - as multiprocessing does
    finalizers: dict[object, weakref.finalize[..., object]] = weakref.finalize._registry  # type: ignore[attr-defined] # noqa: SLF001 - no public list
    for parents in list(finalizers):
        parents.atexit = False  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined] # noqa: SLF001 - it registers itself only once
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process is not None and util is not None:
        process._children.clear()  # noqa: SLF001 - as above
        atexit.register(util._exit_function)  # noqa: SLF001 - as above


def run_exit_functions() -> None:
    """End what this process has begun, as a program does at its end: wait for threads that are no daemons, then call exit functions.

    Source: CPython's Python/pylifecycle.c, `Py_FinalizeEx`.
    """
    threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does, in the same place
    atexit._run_exitfuncs()  # noqa: SLF001 - as above


def reap(pid: int, *, block: bool = False) -> int | None:
    """Return the exit code of the child if it has ended (negative: the signal that ended it), else None.

    If other code has already waited for the child, its exit code is lost and 0 is returned.
    """
    try:
        done, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if done else None


def wait_any(pids: Iterable[int], timeout: float | None) -> None:
    """Wait until at least one child has ended, or `timeout` seconds have passed (None: no limit). Does not reap the child."""
    poll = select.poll()
    descriptors = []
    try:
        for pid in pids:
            descriptor = pidfd(pid)
            if descriptor is None:
                time.sleep(0.02 if timeout is None else min(0.02, timeout))  # no pidfd on this system: the caller checks again soon
                return
            descriptors.append(descriptor)
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the child ends, or None. Source: pidfd_open(2), Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


FORCE = getattr(signal, "SIGURG", None)
"""What the parent sends before SIGTERM to a child that serves a request. A service manager may send SIGTERM to all processes of a server,
but nobody sends this; programs that the child has become ignore it by default. Source: signal(7)."""


def end_request(pid: int) -> None:
    """End a child that serves a request, or the program that it has become, whatever it does about a SIGTERM that others send."""
    for number in filter(None, (FORCE, signal.SIGTERM)):
        send_signal(pid, number)


def is_ended_by(parent: int, on_force: Callable[..., object]) -> bool:
    """Return whether this process serves a request for process `parent`, which ends it by FORCE: it need not heed a SIGTERM for everybody.

    on_force: the handler of FORCE that ends it.
    """
    forced = FORCE is not None and signal.getsignal(FORCE) == on_force
    return forced and forks.for_a_request == os.getpid() and os.getppid() == parent


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a child that has not been reaped yet."""
    with contextlib.suppress(ProcessLookupError):  # it was reaped after all
        os.kill(pid, number)


def how_it_ended(code: int) -> str:
    """Describe in words what an exit code of `reap` means."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, perhaps because memory ran out" if -code == signal.SIGKILL else name


_private: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_shared: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # shared with the children of `fork`
_forking: set[int] = set()  # the threads inside `fork`


def keep_private(sock: socket.socket, *, share: bool = False) -> None:
    """Close the socket in every process forked from this one, by any code; share: keep it open in the children of `fork`.

    The peer then sees end of stream when this process and those children have ended, even if other forked processes live on.
    """
    (_shared if share else _private).add(sock)


def is_forking() -> bool:
    """Return whether this thread is inside `fork`; in a child, just after the fork, whether `fork` has made this process."""
    return threading.get_ident() in _forking


def _close_private() -> None:
    shared = () if is_forking() else _shared
    for sock in [*_private, *shared]:
        sock.close()
    _private.clear()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_private)
