"""Parking: connections wait here without a thread, for their first byte or their next request.

A parked connection costs one poller entry and one deadline entry; adding and removing either is O(1).
"""

from __future__ import annotations

import heapq
import time
from collections import deque

from socketkit._engine.poller import Poller

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any, Protocol

    from socketkit.seams import Clock
else:
    Protocol = object

GRAIN, FINE_GRAIN = 0.1, 0.001
"""Seconds to which deadlines are rounded up: distant ones, and those no more than `FINE` seconds away."""

FINE = 1.0

NEVER = float("inf")
"""The deadline of a connection that may wait for ever."""


class Parked(Protocol):
    """What can be parked: a unit of work with a descriptor.

    parked_at, deadline, noted: written only by the lot. Initially NEVER; reset `noted` to NEVER before parking in another lot.
    expired: set when the deadline has passed, before the unit is handed out.
    """

    parked_at: float
    deadline: float
    noted: float
    expired: bool

    @property
    def begun(self) -> bool:
        """Whether a handler has seen it. If not, it waits for its first byte, and a retiring intake hands it out regardless."""

    def fileno(self) -> int:
        """Return the descriptor whose readability ends the wait."""

    def __call__(self) -> object:
        """Continue, in the calling thread."""


class ParkingLot:
    """The parked connections of one intake. `park` and `drop` may be called from any thread, the rest only from the polling thread.

    A connection that is parked repeatedly keeps one deadline entry, made for its first deadline. When that moment comes, the entry is
    moved to the current deadline. Parking is therefore nearly free, which pays off because most deadlines are cancelled by the
    next request.

    There is no lock. A parking thread only adds to `parked` and `_news`, each an atomic operation; only the polling thread adds, finds
    and drops deadline entries. No deadline is missed, because

    - `due` resets `_next` *before* it reads `_news`, and `park` reads `_next` *after* it has added to `_news`. If `due` misses an
      entry, `park` added it later and so reads `_next` after the reset: it finds no deadline, or the one until which the poller is
      about to sleep. If its own deadline is earlier, it tells its caller to wake the poller.
    - `expire` clears `noted` *before* it checks whether the connection is parked, and `park` checks `noted` *after* it has parked the
      connection. So at least one of them adds a new entry. If both do, the older entry is recognised as stale.
    """

    def __init__(self, poller: Poller, clock: Clock = time.monotonic) -> None:
        self._poller = poller
        self._clock = clock
        self.parked: dict[Any, None] = {}  # longest-waiting first
        self._news: deque[Any] = deque()  # connections that need a deadline entry
        self._noted: dict[float, dict[Any, None]] = {}  # deadline entries by the moment to check them, oldest first
        self._order: list[float] = []  # a heap of those moments
        self._next = NEVER  # the earliest moment, as of the last `due`

    def park(self, parked: Parked, seconds: float | None) -> bool:
        """Park until the descriptor is readable, at most `seconds` (None: for ever); return whether this deadline is now the earliest.

        Raises: OSError, ValueError when the descriptor is closed.
        """
        now = self._clock()
        deadline = NEVER if seconds is None else now + seconds
        parked.parked_at, parked.deadline, parked.expired = now, deadline, False  # before any thread can remove it
        self.parked[parked] = None
        self._poller.arm(parked.fileno(), parked)  # before it can expire: a unit that is handed out must not be armed
        if parked.noted <= deadline:
            return False
        self._news.append(parked)
        return _moment(deadline, now) < self._next

    def leave(self, parked: Parked) -> bool:
        """Remove the connection; False if it was already removed."""
        try:
            del self.parked[parked]
        except KeyError:
            return False
        return True

    def drop(self, parked: Parked) -> None:
        """Remove its deadline entry; it will not be parked again."""
        noted = self._noted.get(parked.noted)
        if noted is not None:
            noted.pop(parked, None)

    def leave_unbegun(self) -> list[Any]:
        """Remove and return the connections that no handler has seen."""
        unbegun = [parked for parked in list(self.parked) if not parked.begun and self.leave(parked)]
        for parked in unbegun:
            self._poller.forget(parked.fileno(), parked)
        return unbegun

    def longest(self) -> Any | None:
        """Remove and return the longest-waiting connection that has begun; None if there is none."""
        for parked in list(self.parked):  # an atomic copy: other threads park meanwhile
            if parked.begun and self.leave(parked):
                self._poller.forget(parked.fileno(), parked)
                return parked
        return None

    def due(self) -> float | None:
        """Return the time of the next deadline, by the lot's clock; None when there is none."""
        self._next = NEVER
        if self._news:
            self._read_news()
        order, noted = self._order, self._noted
        while order and not noted[order[0]]:
            del noted[heapq.heappop(order)]
        if not order:
            return None
        self._next = order[0]
        return order[0]

    def expire(self, now: float) -> list[Any]:
        """Remove and return the connections whose deadline has passed."""
        if self._news:
            self._read_news()
        over = []
        while self._order and self._order[0] <= now:
            moment = heapq.heappop(self._order)
            for parked in self._noted.pop(moment).copy():  # other threads drop entries meanwhile
                if parked.noted != moment:
                    continue
                parked.noted = NEVER
                if parked not in self.parked or parked.deadline == NEVER:
                    continue
                if parked.deadline > now:
                    self._note(parked, now)
                elif self.leave(parked):
                    over.append(parked)
        for parked in over:
            parked.expired = True
            self._poller.forget(parked.fileno(), parked)
        return over

    def empty(self) -> list[Any]:
        everyone = [parked for parked in list(self.parked) if self.leave(parked)]
        for parked in everyone:
            self._poller.forget(parked.fileno(), parked)
        self._news.clear()
        self._noted.clear()
        self._order.clear()
        return everyone

    def _read_news(self) -> None:
        now = self._clock()
        while self._news:
            parked = self._news.popleft()
            if parked in self.parked and parked.deadline < parked.noted:
                self.drop(parked)
                self._note(parked, now)

    def _note(self, parked: Parked, now: float) -> None:
        """Add an entry to check the connection once its deadline has passed."""
        moment = parked.noted = _moment(parked.deadline, now)
        noted = self._noted.get(moment)
        if noted is None:
            noted = self._noted[moment] = {}
            heapq.heappush(self._order, moment)
        noted[parked] = None


def _moment(deadline: float, now: float) -> float:
    """Return when to check a deadline: rounded up, so never too early."""
    grain = FINE_GRAIN if deadline - now <= FINE else GRAIN
    return (int(deadline / grain) + 1) * grain
