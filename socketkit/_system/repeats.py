"""Similar log lines: the first few are logged, the rest counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    import logging

FEW, WINDOW = 3, 10.0
"""Similar lines logged within one window, and the length of a window in seconds."""

MOST_WINDOWS = 256
"""Most windows kept at a time. Beyond that, the oldest is summed up and removed."""


class Window:
    """Counts of similar lines, for `WINDOW` seconds from the first."""

    __slots__ = ("before", "ends", "like", "missed", "said")

    def __init__(self, ends: float, before: int) -> None:
        self.ends = ends
        self.before = before  # lines suppressed in the previous window and not reported yet
        self.said = 0
        self.missed = 0
        self.like: tuple[logging.Logger | None, int, str] | None = None  # an example line


class Repeats:
    """Decides which lines to log and which only to count. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may log too
        self._windows: dict[Hashable, Window] = {}  # all of the same length, so the first one ends first

    def admit(self, key: Hashable, few: int) -> Window | None:
        """Return the window of a line with this `key` if it is to be logged; None if it was only counted."""
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
        """Remove windows that have ended, and the oldest beyond `MOST_WINDOWS`; return those with suppressed lines.

        everything: remove all windows.
        """
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
