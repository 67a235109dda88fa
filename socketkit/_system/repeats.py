"""Lines that are all alike: the first few are said, and the rest counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

FEW, WINDOW = 3, 10.0
"""How many lines about the same thing are said within how many seconds."""

MOST_WINDOWS = 256
"""Things whose lines are counted at the same time. For one more, the oldest is summed up and forgotten."""


class Window:
    """The lines about one thing, for some seconds from the first."""

    __slots__ = ("before", "ends", "like", "missed", "said")

    def __init__(self, ends: float, before: int) -> None:
        self.ends = ends
        self.before = before  # how many were suppressed in the window before this one, if nobody has been told
        self.said = 0
        self.missed = 0
        self.like: tuple[logging.Logger, int, str] | None = None  # what a line looked like


class Repeats:
    """Tells lines to say from lines to count. Safe from every thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may have something to say too
        self._windows: dict[Hashable, Window] = {}  # all of the same length, so the first is the first to end

    def admit(self, key: Hashable, few: int) -> Window | None:
        """Return the window in which a line about `key` is to be said; None if it was only counted."""
        now = self._clock()
        with self._lock:
            window = self._windows.get(key)
            if window is None or window.ends <= now:
                before = 0 if window is None else window.missed + window.before
                self._windows.pop(key, None)
                window = self._windows[key] = Window(now + WINDOW, before)
            if window.said >= few:
                window.missed += 1
                return None
            window.said += 1
            return window

    def overdue(self, *, everything: bool = False) -> list[Window]:
        """Take out the windows that have ended, and those that are too many; return the ones with something to sum up."""
        now, over = self._clock(), []
        with self._lock:
            while self._windows:
                key, window = next(iter(self._windows.items()))
                if not everything and window.ends > now and len(self._windows) <= MOST_WINDOWS:
                    break
                del self._windows[key]
                if window.missed:
                    over.append(window)
        return over
