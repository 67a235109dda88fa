"""A server's periodic work, `service_actions` of a program, under a dispatcher that drives."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit._engine.intake import Intake


class Housekeeping:
    """The periodic work of one run. Calling it does the work if that is due, and returns the seconds until it is due again.

    The thread that serves makes the calls, if the dispatcher lets it: programs expect that thread, and it is free even while all workers
    are busy. Until the first call, `Intake.take` does the work in the thread that takes requests.
    """

    def __init__(self, intake: Intake, work: Callable[[], object], pace: float) -> None:
        self._intake = intake
        self._work = work
        self._pace = pace
        self._due = intake.clock() + pace
        self._is_called = False
        intake.call_later(pace, self._do_in_take)

    def __call__(self) -> float:
        self._is_called = True
        left = self._due - self._intake.clock()
        if left > 0:
            return left
        self._work()
        self._due = self._intake.clock() + self._pace
        return self._pace

    def _do_in_take(self) -> None:
        if not self._is_called:
            self._work()
            self._intake.call_later(self._pace, self._do_in_take)
