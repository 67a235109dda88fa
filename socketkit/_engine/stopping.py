"""Telling handlers that their server stops."""

from __future__ import annotations

import contextlib
import threading


class Stopping:
    """Whether a server is stopping, as a `threading.Event` that signal handlers may set.

    A wait takes the lock and puts it back, so that all waits end one after the other once `set` has released it. An event could not be
    set in a signal handler, which may have interrupted the thread that holds the event's own lock.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._held = threading.Lock()
        self._held.acquire()

    def is_set(self) -> bool:
        """Return whether the server is stopping."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server is stopping, at most `timeout` seconds (None: no limit); return whether it is."""
        if not self._is_set and self._held.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            self._release()
        return self._is_set

    def set(self) -> None:
        """Let all waits end. For the engine only; further calls change nothing."""
        if not self._is_set:
            self._is_set = True
            self._release()

    def _release(self) -> None:
        with contextlib.suppress(RuntimeError):  # two threads have released it at once
            self._held.release()
