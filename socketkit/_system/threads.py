"""Threads whose `start` always returns, the list of a server's threads, and the library's own background threads."""

from __future__ import annotations

import _thread
import sys
import threading
import time

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any

_USUAL = threading.Thread


def _allows_daemons() -> bool:
    try:
        threading.Thread(name="socketkit-try", daemon=True)  # it is never started
    except RuntimeError:
        return False
    return True


ALLOWS_DAEMONS = _allows_daemons()
"""Whether this interpreter may have daemon threads. Those of `concurrent.futures.InterpreterPoolExecutor` may not."""


class SureThread(threading.Thread):
    """A thread whose `start` always returns or raises, even if the new thread fails at once.

    `threading.Thread.start` waits for the new thread to report that it runs, which it never does if it has no memory to begin with.
    """

    _failed = False

    def start(self) -> None:
        """As `threading.Thread.start`. Raises: RuntimeError when the system has no thread available, or no memory for its first steps."""
        super().start()
        if self._failed:
            raise RuntimeError("can't start new thread: there is no memory for its first steps")

    def _bootstrap(self) -> None:
        try:
            super()._bootstrap()  # type: ignore[misc]
        finally:
            started: threading.Event = self._started  # type: ignore[attr-defined]
            if not started.is_set():
                self._failed = True
                started.set()


class BackgroundThread(SureThread):
    """A daemon thread that blocks all signals. Owner: the code that starts it.

    The system delivers a signal to any thread that does not block it, but Python runs its handler in the main thread. If that thread
    sleeps in a system call, which only a signal delivered to it would interrupt, the handler is delayed until the call returns.
    Source: signal(7), "Signal mask and pending signals"; PEP 475.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._over = threading.Event()

    def start(self) -> None:
        """As `SureThread.start`. The thread has none of the caller's context variables, which may be those of a request.

        Without the global interpreter lock a new thread inherits them. Source: CPython's Lib/threading.py, Thread.start.
        """
        from contextvars import Context  # noqa: PLC0415 - every classic server imports this module, and few start such a thread

        Context().run(super().start)

    def run(self) -> None:
        import signal  # noqa: PLC0415 - as above

        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            super().run()
        finally:
            self._over.set()

    def finish(self) -> None:
        """Wait until the thread has ended. Unlike `join`, it may be called before the thread is started, if that is about to happen."""
        self._over.wait()
        if self.ident is not None:
            self.join()


class ThreadList(list[threading.Thread]):
    """The running threads of one server, without daemons unless `daemons`. The classic mix-in exposes its own as `_threads`."""

    def __init__(self, *, daemons: bool = False) -> None:
        super().__init__()
        self._daemons = daemons
        self._lock = threading.Lock()
        self._look_at = 1

    def append(self, thread: threading.Thread) -> None:
        """Add a started thread. Most lists leave daemons out, because nothing waits for them."""
        if self._daemons or not thread.daemon:
            with self._lock:
                super().append(thread)

    def make_room(self) -> None:
        """Remove the threads that have ended, whenever the list has doubled since the last time.

        So the average cost of a thread does not depend on how many run. Call this before starting a thread: afterwards the caller and
        the new thread compete for the interpreter.
        """
        if len(self) >= self._look_at:
            with self._lock:
                self[:] = [each for each in self if each.is_alive()]
                self._look_at = max(1, 2 * len(self))

    def pop_all(self) -> list[threading.Thread]:
        """Remove and return all threads."""
        with self._lock:
            threads, self[:] = self[:], []
        return threads

    def reap(self) -> None:
        """Remove the threads that have ended."""
        with self._lock:
            self[:] = [each for each in self if each.is_alive()]

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all threads, at most `timeout` seconds in total; return whether all have ended. See `join_all`."""
        ended = join_all(self.copy(), timeout)  # they stay on the list meanwhile: another caller may wait for them too
        self.reap()
        return ended


def start_thread(run: Callable[..., object], arguments: tuple[Any, ...], threads: Any, *, daemon: bool) -> None:
    """Start a thread, then add it to the list. The order matters: a thread that never started cannot be joined.

    A Ctrl-C between the two does not keep it from the list: otherwise nobody would know of the request.
    Raises: RuntimeError if the system has no thread left.
    """
    kind = SureThread if threading.Thread is _USUAL else threading.Thread  # a program may have replaced the class
    thread = kind(target=run, args=arguments)
    thread.daemon = daemon
    threads.make_room()
    try:
        thread.start()
    finally:
        if thread.ident is not None:
            threads.append(thread)


def aside(function: Callable[[], object], name: str = "socketkit-aside") -> BackgroundThread:
    """Call the function in a new thread and return that thread. Safe in a signal handler.

    `threading.Thread.start` is not: the interrupted thread may be inside it and hold the lock that it needs.
    Raises: RuntimeError when the system has no thread available.
    """
    import signal  # noqa: PLC0415 - whoever handles a signal has imported it

    thread = BackgroundThread(function, name)
    if not hasattr(signal, "pthread_sigmask"):
        _thread.start_new_thread(_start, (thread,))
        return thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a new thread inherits this
    try:
        _thread.start_new_thread(_start, (thread,))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


def _start(thread: BackgroundThread) -> None:
    try:
        thread.start()
    except RuntimeError:  # the system has no further thread, so use this one
        thread.run()


def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread, by the thread's identifier; an empty mapping without the global interpreter lock.

    Without it a thread runs on while another one reads its frames, which may crash the interpreter. Source: CPython's
    Doc/howto/free-threading-python.rst, "Frame objects".
    """
    has_lock: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)  # since Python 3.13
    return sys._current_frames() if has_lock is None or has_lock() else {}  # noqa: SLF001 - the only way to see other threads' stacks


def join_all(threads: Iterable[threading.Thread], timeout: float | None) -> bool:
    """Wait for the threads, at most `timeout` seconds in total (None: for ever); return whether all have ended.

    The calling thread is left out, because a handler may close its own server, and so is a thread whose start was interrupted.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    others = [each for each in threads if each is not threading.current_thread() and each.ident is not None]
    for thread in others:
        thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    return not any(each.is_alive() for each in others)
