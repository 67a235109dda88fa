"""Where connections wait without a thread: for their first byte, or for their next request.

A parked connection costs one entry in the poller and one in a list of deadlines, both O(1) to enter and to leave.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from typing import Any, Protocol

from socketkit._engine.poller import Poller
from socketkit.seams import Clock

GRAIN, FINE_GRAIN = 0.1, 0.001
"""Seconds within which deadlines count as the same moment: far ones, and those no more than `FINE` seconds away."""

FINE = 1.0

NEVER = float("inf")
"""The deadline of one that may wait for ever."""


class Parked(Protocol):
    """What can be parked: a unit of work with a descriptor.

    parked_at, deadline, noted: the lot's, which alone writes them; NEVER at first, and `noted` also before it comes to another lot.
    expired: set when its time is up, before it is handed out.
    """

    parked_at: float
    deadline: float
    noted: float
    expired: bool

    @property
    def begun(self) -> bool:
        """Whether a handler has seen it. Else it waits for its first byte: an intake that retires hands it out all the same."""
        ...

    def fileno(self) -> int:
        """Return the descriptor whose readability ends the wait."""
        ...

    def __call__(self) -> object:
        """Go on, in the calling thread."""
        ...


class ParkingLot:
    """The parked connections of one intake. `park` and `drop` may be called from any thread, the rest by the one that polls.

    A connection that comes and goes is noted once, for the moment of its first deadline; in that moment it is seen that the deadline
    is a later one by now. So to park costs next to nothing, and nearly every deadline is cancelled by the next request.

    There is no lock. Whoever parks only adds to `parked` and to `_news`, each in one step of the interpreter; moments are noted, found
    and dropped by the one that polls. No deadline is slept through, because

    - `due` forgets `_next` *before* it looks at the news, and `park` reads `_next` *after* it has added to them. If `due` misses an
      entry, that was added after the look, hence `park` reads after the forgetting: it finds no moment, or the very one for which the
      poller is about to sleep, and tells its caller to wake the poller if its own is earlier.
    - `expire` forgets that a connection is noted *before* it looks whether it is parked, and `park` looks whether it is noted *after*
      it has parked it. So one of them notes it again. If both do, the first is found not to count any more.
    """

    def __init__(self, poller: Poller, clock: Clock = time.monotonic) -> None:
        self._poller = poller
        self._clock = clock
        self.parked: dict[Any, None] = {}  # who has waited longest comes first
        self._news: deque[Any] = deque()  # who is to be noted
        self._noted: dict[float, dict[Any, None]] = {}  # by the moment at which to look at them; who came first is first
        self._order: list[float] = []  # a heap of the moments
        self._next = NEVER  # the first of them, when somebody last asked for it

    def park(self, parked: Parked, seconds: float | None) -> bool:
        """Wait for the descriptor, at most so many seconds (None: for ever); return whether that deadline is now the next.

        Raises: OSError, ValueError when the descriptor is closed.
        """
        now = self._clock()
        deadline = NEVER if seconds is None else now + seconds
        parked.parked_at, parked.deadline, parked.expired = now, deadline, False  # before anybody can take it out
        self.parked[parked] = None
        self._poller.arm(parked.fileno(), parked)  # before its time can be up: who is handed out is not armed any more
        if parked.noted <= deadline:
            return False
        self._news.append(parked)
        return _moment(deadline, now) < self._next

    def leave(self, parked: Parked) -> bool:
        """Take it out, because its descriptor is readable; False if somebody else took it out before."""
        try:
            del self.parked[parked]
        except KeyError:
            return False
        return True

    def drop(self, parked: Parked) -> None:
        """Forget that it is noted: it never comes again."""
        noted = self._noted.get(parked.noted)
        if noted is not None:
            noted.pop(parked, None)

    def longest(self) -> Any | None:
        """Take out and return who has waited longest of those that have begun; None when none of them has."""
        for parked in list(self.parked):  # a copy, made in one step: others park meanwhile
            if parked.begun and self.leave(parked):
                self._poller.forget(parked.fileno(), parked)
                return parked
        return None

    def due(self) -> float | None:
        """Return the moment of the next deadline, by its clock; None when there is none."""
        self._next = NEVER
        self._read_news()
        order, noted = self._order, self._noted
        while order and not noted[order[0]]:
            del noted[heapq.heappop(order)]
        if not order:
            return None
        self._next = order[0]
        return order[0]

    def expire(self, now: float) -> list[Any]:
        """Take out and return those whose time is up."""
        self._read_news()
        over = []
        while self._order and self._order[0] <= now:
            moment = heapq.heappop(self._order)
            for parked in tuple(self._noted.pop(moment)):
                if parked.noted != moment:
                    continue
                parked.noted = NEVER
                if parked not in self.parked:
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
        """Take out and return all."""
        everyone = [parked for parked in list(self.parked) if self.leave(parked)]
        for parked in everyone:
            self._poller.forget(parked.fileno(), parked)
        self._news.clear()
        self._noted.clear()
        self._order.clear()
        return everyone

    def _read_news(self) -> None:
        if not self._news:
            return
        now = self._clock()
        while self._news:
            parked = self._news.popleft()
            if parked in self.parked and parked.deadline < parked.noted:
                self.drop(parked)
                self._note(parked, now)

    def _note(self, parked: Parked, now: float) -> None:
        """Look at it when its deadline is over."""
        moment = parked.noted = _moment(parked.deadline, now)
        noted = self._noted.get(moment)
        if noted is None:
            noted = self._noted[moment] = {}
            heapq.heappush(self._order, moment)
        noted[parked] = None


def _moment(deadline: float, now: float) -> float:
    """Return when to look whether a deadline is over: not before it is."""
    grain = FINE_GRAIN if deadline - now <= FINE else GRAIN
    return (int(deadline / grain) + 1) * grain
