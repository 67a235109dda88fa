"""The end of an intake that hands out what was accepted before it stops."""

from __future__ import annotations

from collections.abc import Callable

from socketkit._engine.accepting import RETIRED

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit._engine.intake import Intake

LINGER = 0.01
"""Seconds between checks for anything left to wait for."""


class Retirement:
    """An intake's way to its end: it takes nothing new, hands out what was accepted, and stops. Used by the thread that takes.

    until: how long parked units may wait, by the clock of the intake; after that, those that have not begun are handed out too.
    coming: returns whether more units are likely to be parked here.
    """

    def __init__(self, intake: Intake, until: float, coming: Callable[[], bool]) -> None:
        self._intake = intake
        self._until = until
        self._coming = coming

    def go_on(self) -> None:
        """Wait for parked units, or for more to come, as long as there is time; then hand out the rest."""
        left = self._until - self._intake.clock()
        if left > 0 and (self._coming() or self._intake.lot.parked):
            self._intake.call_later(min(left, LINGER), self.go_on)
        else:
            self._finish()

    def _finish(self) -> None:
        """Hand out everything that was accepted; stop once nothing of it is left."""
        intake = self._intake
        intake.accepting.pause(RETIRED)
        intake.units.woken.extend(intake.lot.leave_unbegun())  # an accepted connection gets a handler, even without a first byte
        intake.call_soon(self._finish if intake.units.wake_all() else intake.stop)  # runs once nothing is woken
