"""A new thread for each request, as `socketserver.ThreadingMixIn` does it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from socketkit._system.threads import SureThread
from socketkit.seams import Address, Request, Work

_USUAL = threading.Thread


@attrs.frozen
class Threads:
    """A thread for each request, without a bound."""

    daemon: bool = attrs.field(default=False, kw_only=True)
    """True: the interpreter may exit while requests run, and a drain does not wait for them."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def start(self, work: Work) -> _ThreadPerRequest:
        """Return the live part."""
        return _ThreadPerRequest(work, self.daemon)


class ThreadList(list[threading.Thread]):
    """The running non-daemon threads of one server. The classic mix-in shows it as `_threads`."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._look_at = 1

    def append(self, thread: threading.Thread) -> None:
        """Add a thread that was started. Daemon threads are nobody's to wait for.

        Those that have ended are forgotten whenever the list is twice as long as it was after the last time: so each thread costs the
        same, however many run.
        """
        with self._lock:
            if len(self) >= self._look_at:
                self[:] = [each for each in self if each.is_alive()]
                self._look_at = max(1, 2 * len(self))
            if not thread.daemon:
                super().append(thread)

    def pop_all(self) -> list[threading.Thread]:
        """Return all threads and forget them."""
        with self._lock:
            threads, self[:] = self[:], []
        return threads

    def reap(self) -> None:
        """Forget the threads that have ended."""
        with self._lock:
            self[:] = [each for each in self if each.is_alive()]

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all threads, `timeout` seconds in total at most; return whether all have ended.

        The calling thread does not wait for itself, so a handler may close its own server; nobody waits for a thread that never started.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        others = [each for each in list(self) if each is not threading.current_thread() and each.ident is not None]
        for thread in others:  # which stay on the list meanwhile: somebody else may wait for them too
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        self.reap()
        return not any(each.is_alive() for each in others)


def start_thread(run: Callable[..., object], arguments: tuple[Any, ...], threads: Any, *, daemon: bool) -> None:
    """Start a thread and put it on the list: in this order, because one that never started cannot be joined.

    Raises: RuntimeError when the system has no thread left to give.
    """
    kind = SureThread if threading.Thread is _USUAL else threading.Thread  # which programs replace
    thread = kind(target=run, args=arguments)
    thread.daemon = daemon
    thread.start()
    threads.append(thread)


@attrs.define(eq=False)
class _ThreadPerRequest:
    work: Work
    daemon: bool
    threads: ThreadList = attrs.field(factory=ThreadList)

    def dispatch(self, request: Request, client_address: Address) -> None:
        start_thread(self.work.run, (request, client_address), self.threads, daemon=self.daemon)

    def wait(self, timeout: float | None) -> bool:
        return self.threads.join(timeout)

    def close(self) -> None:
        pass
