"""A clock that stands still until a test advances it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class FakeClock:
    """A `clock` for `Server` that moves only when `advance` is called. Safe to use from any thread.

    It controls only deadlines. Waiting for the system, such as for a client or a thread to end, still takes real time.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._followers: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the current time of this clock, in seconds."""
        return self._now

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._now!r})"

    def advance(self, seconds: float) -> None:
        """Advance the clock, and make its followers check their deadlines. Raises: ValueError if `seconds` is negative."""
        if seconds < 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds}: the clock never goes back")
        with self._lock:
            self._now += seconds
            followers = list(self._followers)
        for follower in followers:
            call = follower()
            if call is not None:
                call()

    def follow(self, callback: Callable[[], None]) -> None:
        """Call a bound method at each `advance`, for as long as its object exists."""
        with self._lock:
            self._followers = [each for each in self._followers if each() is not None]
            self._followers.append(weakref.WeakMethod(callback))
