"""Child processes, for dispatchers that fork: start one, wait for it and for nobody else's, say how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable

from socketkit._system import logs


def fork(run: Callable[[], int]) -> int:
    """Start a child that calls `run`, exits with what it returns (1 if it raises), and return the child's pid.

    The child leaves by `os._exit`, so that nothing of the parent's clean-up runs in it, but flushes its standard streams first. So
    does the parent before it forks: what stands in their buffers would come out twice. Neither waits long for who reads from them.
    """
    if logs.flush(logs.SHORT_PATIENCE):  # so that usually no second thread is there to be left behind
        logs.flush_streams()
    _forking.add(threading.get_ident())
    try:
        pid = os.fork()
    finally:
        _forking.discard(threading.get_ident())
    if pid:
        return pid
    with contextlib.suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)  # it is the parent's loop that signals are to wake
    status = 1
    try:
        status = run()
    finally:
        logs.leave(status)


def reap(pid: int, *, block: bool = False) -> int | None:
    """Return the exit code of the child if it has ended (negative: the signal that ended it), else None.

    One that somebody else has waited for is over too: its code is lost, and 0 stands for it.
    """
    try:
        done, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if done else None


def wait_any(pids: Iterable[int], timeout: float | None) -> None:
    """Wait until at least one of the children has ended, or the time is over. Takes no exit code."""
    poll = select.poll()
    descriptors = []
    try:
        for pid in pids:
            descriptor = pidfd(pid)
            if descriptor is None:
                time.sleep(0.02 if timeout is None else min(0.02, timeout))  # no pidfd here: look again shortly
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


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a child that nobody has waited for yet."""
    with contextlib.suppress(ProcessLookupError):  # somebody has, after all
        os.kill(pid, number)


def how_it_ended(code: int) -> str:
    """Say in words what an exit code of `reap` means."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, perhaps for want of memory" if -code == signal.SIGKILL else name


_private: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_shared: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # with the children of `fork`
_forking: set[int] = set()  # the threads inside `fork`


def keep_private(sock: socket.socket, *, share: bool = False) -> None:
    """Have the socket closed in every process that is forked from this one, by whomever; share: but not in the children of `fork`.

    Its other end then hears of this process's death, and of those children's, however many others live on.
    """
    (_shared if share else _private).add(sock)


def _close_private() -> None:
    sets = [_private] if threading.get_ident() in _forking else [_private, _shared]
    for sock in [sock for each in sets for sock in each]:
        sock.close()
    _private.clear()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_private)
