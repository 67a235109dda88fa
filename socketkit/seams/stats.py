"""What a server has done, and how it ended: plain values."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from socketkit.seams.types import Address


@attrs.frozen
class Stats:
    """What a server has done so far. `outcomes` maps each outcome to a count; its names are those of `Ledger.settle`."""

    active: int = 0
    outcomes: Mapping[str, int] = attrs.field(factory=dict)
    dropped: int | None = None
    """Datagrams that the system has dropped before the server could take them, for want of room in the listener's receive buffer; they
    are not among the accepted. None where the system does not tell: Linux does."""

    @property
    def accepted(self) -> int:
        """Connections accepted and datagrams received: those in work and those with an outcome."""
        return self.active + sum(self.outcomes.values())


@attrs.frozen
class Stuck:
    """A request that was still running when its server gave up on it."""

    peer: Address
    age: float
    stack: str
    """Where its thread stood, as a traceback prints it; "" when it ran in another process."""


@attrs.frozen
class DrainReport:
    """How a server ended.

    finished: requests that ended by themselves after stop was asked for. forced: requests that ended only when the deadline had
    passed and their sockets were shut down. stuck: requests that did not end even then.
    """

    finished: int = 0
    forced: int = 0
    stuck: tuple[Stuck, ...] = ()

    def __str__(self) -> str:
        return f"{self.finished} finished, {self.forced} forced, {len(self.stuck)} stuck"
