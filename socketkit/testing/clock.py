"""A clock that stands still until a test puts it forward."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class FakeClock:
    """A `clock` for `Server`: deadlines pass when `advance` says so, and not before. Safe from every thread.

    Only deadlines are told by it. What waits for the system, such as a client or a join, takes the time it takes.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._followers: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return its time, in seconds."""
        return self._now

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._now!r})"

    def advance(self, seconds: float) -> None:
        """Put it forward, and make everyone who follows it look at their deadlines. Raises: ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"clocks of this kind never go back, and {seconds} is back")
        with self._lock:
            self._now += seconds
            followers = list(self._followers)
        for follower in followers:
            call = follower()
            if call is not None:
                call()

    def follow(self, callback: Callable[[], None]) -> None:
        """Have a bound method called at each `advance`, for as long as its object is there."""
        with self._lock:
            self._followers = [each for each in self._followers if each() is not None]
            self._followers.append(weakref.WeakMethod(callback))
