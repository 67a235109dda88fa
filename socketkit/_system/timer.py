"""Calling functions at given times, even if handlers occupy every other thread."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from socketkit._system.logs import Log
from socketkit._system.threads import BackgroundThread, aside

if TYPE_CHECKING:
    from socketkit.seams import Clock

log = Log("socketkit.timekeeper")


class TimerThread:
    """A thread that calls functions at given times; the first `call_later` starts it. Owner: its creator, which closes it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._asked: queue.SimpleQueue[tuple[float, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread: BackgroundThread | None = None
        self._starting = threading.Lock()  # ensures that there is at most one thread, and none once it is closed
        self._closed = False

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` in the thread after `seconds`. From any thread and from signal handlers.

        Raises: RuntimeError when the system cannot start a thread.
        """
        if self._thread is None and self._starting.acquire(blocking=False):  # if it is taken, its holder starts the thread
            try:
                self._start()
            finally:
                self._starting.release()
        self._asked.put((self._clock() + seconds, callback))

    def close(self) -> None:
        """End the thread; pending calls are dropped. May be called twice."""
        with self._starting:
            self._closed = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.finish()

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = aside(self._keep, "socketkit-timekeeper")
            if hasattr(self._clock, "follow"):
                self._clock.follow(self._wake)

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
                    log.exception("%r raised; the timer goes on", callback)
