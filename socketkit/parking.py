"""Where connections wait without a thread: for their first byte, or for their next request.

A parked connection costs one entry in the poller and one in a list of deadlines, both O(1) to enter and to leave.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from typing import Any, Protocol

import attrs

from socketkit.poller import Poller

GRAIN = 0.1
"""Seconds within which deadlines of more than `FINE` seconds count as the same moment."""

FINE = 1.0
"""Deadlines up to so many seconds away are kept exactly, in the order in which they were made."""


@attrs.frozen
class Parking:
    """How a dispatcher wants its connections parked.

    defer: seconds a new connection may wait for its first byte before its handler starts anyway.
    idle: seconds a connection may wait for its next request before it is closed; None: for ever.
    max_inline: requests that one connection may make in a row while others wait.
    """

    defer: float = 0.01
    idle: float | None = 75.0
    max_inline: int = 10


class Parked(Protocol):
    """What can be parked: a unit of work with a descriptor. `expired` is set when its time is up, before it is handed out."""

    deadline: float
    expired: bool

    def fileno(self) -> int:
        """Return the descriptor whose readability ends the wait."""
        ...

    def __call__(self) -> object:
        """Go on, in the calling thread."""
        ...


class Lot:
    """The parked connections of one intake. `park` may be called from any thread, the rest by the one that polls."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.parked: set[Any] = set()
        self._soon: dict[float, deque[tuple[float, Any]]] = {}  # one queue for each duration: each is in order by itself
        self._later: dict[int, set[Any]] = {}  # buckets of `GRAIN` seconds
        self._order: list[int] = []  # a heap of the buckets

    def park(self, parked: Parked, seconds: float | None) -> bool:
        """Wait for the descriptor, at most so many seconds (None: for ever); return whether that deadline is now the next."""
        first = False
        parked.expired = False
        self.parked.add(parked)
        if seconds is None:
            parked.deadline = float("inf")
        else:
            parked.deadline = time.monotonic() + seconds
            first = self._enter(parked, seconds)
        self._poller.arm(parked.fileno(), parked)
        return first

    def leave(self, parked: Parked) -> bool:
        """Take it out, because its descriptor is readable; False if somebody else took it out before."""
        try:
            self.parked.remove(parked)
        except KeyError:
            return False
        bucket = self._later.get(int(parked.deadline / GRAIN)) if parked.deadline != float("inf") else None
        if bucket is not None:
            bucket.discard(parked)
        return True

    def due(self) -> float | None:
        """Return the moment of the next deadline, by `time.monotonic`; None when there is none."""
        moments = [queue[0][0] for queue in list(self._soon.values()) if queue]
        if self._order:
            moments.append((self._order[0] + 1) * GRAIN)
        return min(moments, default=None)

    def expire(self, now: float) -> list[Any]:
        """Take out and return those whose time is up."""
        over = []
        for queue in list(self._soon.values()):
            while queue and queue[0][0] <= now:
                deadline, parked = queue.popleft()
                if parked.deadline == deadline and self.leave(parked):  # else it left, and may have come again
                    over.append(parked)
        while self._order and (self._order[0] + 1) * GRAIN <= now:
            over += [parked for parked in self._later.pop(heapq.heappop(self._order), ()) if self.leave(parked)]
        for parked in over:
            parked.expired = True
            self._poller.forget(parked.fileno(), parked)
        return over

    def empty(self) -> list[Any]:
        """Take out and return all."""
        everyone = [parked for parked in list(self.parked) if self.leave(parked)]
        for parked in everyone:
            self._poller.forget(parked.fileno(), parked)
        self._soon.clear()
        self._later.clear()
        self._order.clear()
        return everyone

    def _enter(self, parked: Parked, seconds: float) -> bool:
        if seconds <= FINE:
            queue = self._soon.setdefault(seconds, deque())
            queue.append((parked.deadline, parked))
            return len(queue) == 1
        number = int(parked.deadline / GRAIN)
        bucket = self._later.get(number)
        if bucket is None:
            bucket = self._later.setdefault(number, set())
            heapq.heappush(self._order, number)
        bucket.add(parked)
        return self._order[0] == number
