"""Threads whose start ends, and those of the library's own, beside the ones that run handlers."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterable


class SureThread(threading.Thread):
    """A thread whose `start` comes to an end, whatever becomes of the thread.

    That of `threading.Thread` waits for the new thread to say that it runs. One that has no memory for its first steps never does.
    """

    _failed = False

    def start(self) -> None:
        """As `threading.Thread.start`. Raises: RuntimeError when the system has no thread to give, or no memory for its first steps."""
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
    """A daemon thread that takes no signals. Owner: whoever starts it.

    The system hands a signal to any thread that takes it, and Python runs its handler in the main thread. If that one sleeps in a
    system call, which only a signal of its own would end, the handler waits for as long. Source: signal(7), "Signal mask and pending
    signals"; PEP 475.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._over = threading.Event()

    def run(self) -> None:
        """As `threading.Thread.run`."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            super().run()
        finally:
            self._over.set()

    def finish(self) -> None:
        """Wait until it has run. Unlike `join`, legal before it was started, if somebody is about to."""
        self._over.wait()
        if self.ident is not None:
            self.join()


def aside(function: Callable[[], object]) -> BackgroundThread:
    """Call the function in a thread of its own. Legal in a signal handler.

    There `threading.Thread.start` is not: the thread that the signal interrupts may be inside it, with the lock that it needs.
    Raises: RuntimeError when the system has no thread to give.
    """
    thread = BackgroundThread(function, "socketkit-aside")
    _thread.start_new_thread(_start, (thread,))
    return thread


def _start(thread: BackgroundThread) -> None:
    try:
        thread.start()
    except RuntimeError:  # this one was the last that the system had
        thread.run()


def join_all(threads: Iterable[threading.Thread], timeout: float | None) -> bool:
    """Wait for the threads, at most `timeout` seconds in total (None: for ever); return whether all have ended.

    The calling thread is left out, because a handler may close its own server, and so is a thread whose start was interrupted.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    others = [each for each in threads if each is not threading.current_thread() and each.ident is not None]
    for thread in others:
        thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    return not any(each.is_alive() for each in others)
