"""The units of an intake that are ready to continue, in the order in which they are handed out."""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any


class Units:
    """Units whose wait is over, and behind them those that have used up their share.

    `again` may be called from any thread, the rest only from the thread that takes.

    Attributes:
        woken: units whose wait is over.
        turns: units that had used up their share before the last poll.
        later: units that have used up their share since the last poll, and will be ready after the next.
    """

    def __init__(self) -> None:
        self.woken: deque[Any] = deque()
        self.turns: deque[Any] = deque()
        self.later: deque[Any] = deque()
        self._emptied = False

    def again(self, unit: Any) -> bool:
        """Queue the unit behind everything else that is ready; False if `empty` has already run."""
        self.later.append(unit)
        if self._emptied:
            try:
                self.later.remove(unit)
            except ValueError:
                return True  # `empty` removed it with the rest
            return False
        return True

    def have_polled(self) -> None:
        """Make the units that used up their share before this poll ready."""
        while self.later:
            try:
                self.turns.append(self.later.popleft())
            except IndexError:  # `again` has just taken it back
                return

    def wake_all(self) -> bool:
        """Move every unit to `woken`; return whether there is any."""
        self.have_polled()
        while self.turns:
            self.woken.append(self.turns.popleft())
        return bool(self.woken)

    def empty(self) -> list[Any]:
        """Remove and return all units, for the end of a run."""
        self._emptied = True  # set before emptying: `again` adds its unit before it reads this
        self.wake_all()
        everyone = list(self.woken)
        self.woken.clear()
        return everyone
