"""Calling functions at given times, even if handlers occupy every other thread."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable

from socketkit._system.logs import Log
from socketkit._system.threads import BackgroundThread, aside

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.seams import Clock

log = Log("socketkit.timekeeper")

NEVER = float("inf")


class Appointments:
    """Functions to call at given times, by a clock. Used by one thread at a time."""

    def __init__(self) -> None:
        self.next = NEVER
        """The earliest of these times."""
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()  # breaks ties, so that callbacks are never compared

    def add(self, moment: float, callback: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (moment, next(self._order), callback))
        self.next = self._heap[0][0]

    def pop(self, now: float) -> Callable[[], object] | None:
        """Remove and return the next function that is due; None if there is none."""
        if self.next > now:
            return None
        callback = heapq.heappop(self._heap)[2]
        self.next = self._heap[0][0] if self._heap else NEVER
        return callback


class TimerThread:
    """A thread that calls functions at given times; the first `call_later` starts it. Owner: its creator, which closes it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._asked: queue.SimpleQueue[tuple[float, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread: BackgroundThread | None = None
        self._starting = threading.Lock()  # ensures that there is at most one thread, and none once it is closed
        self._closed = False

    def call_later(self, seconds: float, callback: Callable[[], object], *, in_signal_handler: bool = False) -> None:
        """Call `callback` in the thread after `seconds`. From any thread.

        in_signal_handler: whether a signal handler may make this call, where starting the thread takes two.
        Raises: RuntimeError when the system cannot start a thread.
        """
        if self._thread is None and self._starting.acquire(blocking=False):  # if it is taken, its holder starts the thread
            try:
                self._start(in_signal_handler=in_signal_handler)
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

    def _start(self, *, in_signal_handler: bool) -> None:
        if self._thread is None and not self._closed:
            if in_signal_handler:
                self._thread = aside(self._keep, "socketkit-timekeeper")
            else:
                thread = BackgroundThread(self._keep, "socketkit-timekeeper")
                thread.start()
                self._thread = thread
            if hasattr(self._clock, "follow"):
                self._clock.follow(self._wake)

    def _wake(self) -> None:
        self._asked.put(None)

    def _keep(self) -> None:
        appointments = Appointments()
        while not self._closed:
            left = None if appointments.next == NEVER else min(max(appointments.next - self._clock(), 0.0), threading.TIMEOUT_MAX)
            try:
                asked = self._asked.get(timeout=left)
            except queue.Empty:
                asked = None
            if asked is not None:
                appointments.add(*asked)
            while (callback := appointments.pop(self._clock())) is not None:
                if self._closed:
                    return
                try:
                    callback()
                except Exception:
                    log.exception("%r raised; the timer goes on", callback)
