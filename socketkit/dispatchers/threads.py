"""A new thread for each request, like `socketserver.ThreadingMixIn`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from socketkit._system.threads import SureThread, join_all
from socketkit.seams import Address, Request, Work

_USUAL = threading.Thread


@attrs.frozen
class Threads:
    """One thread for each request, without a limit."""

    daemon: bool = attrs.field(default=False, kw_only=True)
    """True: the interpreter may exit while requests run, and a drain does not wait for them."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def daemonized(self) -> Threads:
        """Return the recipe with daemon threads."""
        return attrs.evolve(self, daemon=True)

    def start(self, work: Work) -> _ThreadPerRequest:
        """Return the live part."""
        return _ThreadPerRequest(work, self.daemon)


class ThreadList(list[threading.Thread]):
    """The running non-daemon threads of one server. The classic mix-in exposes it as `_threads`."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._look_at = 1

    def append(self, thread: threading.Thread) -> None:
        """Add a started thread. Daemon threads are not added, because nothing waits for them.

        Ended threads are removed whenever the list has doubled since the last removal, so the average cost of a thread does not depend
        on how many run.
        """
        with self._lock:
            if len(self) >= self._look_at:
                self[:] = [each for each in self if each.is_alive()]
                self._look_at = max(1, 2 * len(self))
            if not thread.daemon:
                super().append(thread)

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
    try:
        thread.start()
    finally:
        if thread.ident is not None:
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
