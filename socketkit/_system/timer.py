"""Timed callbacks that run even while handlers block every other thread."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from socketkit._system.logs import Log
from socketkit._system.threads import BackgroundThread

if TYPE_CHECKING:
    from socketkit.seams import Clock

log = Log("socketkit.timekeeper")


class TimerThread:
    """A thread that sleeps until a callback is due and calls it; it starts with the first `call_later`.

    Owner: its creator, which closes it. `call_later` may be called from any thread.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._asked: queue.SimpleQueue[tuple[float, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # ensures at most one thread, and none after `close`
        self._closed = False
        if hasattr(clock, "follow"):
            clock.follow(self._wake)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` once, in the timer's thread, after `seconds`. Raises: RuntimeError when the system has no thread available."""
        if self._thread is None:
            self._start()
        self._asked.put((self._clock() + seconds, callback))

    def close(self) -> None:
        """End the thread; callbacks that are not due yet are dropped. May be called twice."""
        with self._starting:
            self._closed = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                thread = BackgroundThread(self._keep, "socketkit-timekeeper")
                thread.start()
                self._thread = thread

    def _wake(self) -> None:
        self._asked.put(None)

    def _keep(self) -> None:
        appointments: list[tuple[float, int, Callable[[], object]]] = []
        order = itertools.count()  # breaks ties, so that callbacks are never compared
        while not self._closed:
            left = None if not appointments else min(max(appointments[0][0] - self._clock(), 0.0), threading.TIMEOUT_MAX)
            try:
                asked = self._asked.get(timeout=left)
            except queue.Empty:
                asked = None
            if asked is not None:
                heapq.heappush(appointments, (asked[0], next(order), asked[1]))
            while appointments and appointments[0][0] <= self._clock() and not self._closed:
                callback = heapq.heappop(appointments)[2]
                try:
                    callback()
                except Exception:
                    log.exception("%r raised; the time is kept on", callback)
