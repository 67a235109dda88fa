"""Statistics of a server and reports of its drains, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from socketkit.seams.types import Address

if TYPE_CHECKING:
    from datetime import datetime


@attrs.frozen
class Queue:
    """The connections that the system has accepted for a listener, and that the server has not taken yet.

    waiting: how many there are now. limit: how many there may be; the system turns away what is beyond it.
    """

    waiting: int
    limit: int


@attrs.frozen
class Stats:
    """Statistics of a server so far. `outcomes` maps the name of each outcome (see `Ledger.settle`) to a count."""

    active: int = 0
    outcomes: Mapping[str, int] = attrs.field(factory=dict)
    accepted: int = attrs.field(init=False)
    """Number of connections accepted and datagrams received, both active and ended."""
    dropped: int | None = None
    """Datagrams that the system dropped because the listener's receive buffer was full. They do not count as accepted. None where the
    system does not report them; Linux does."""
    queues: Mapping[str, Queue] = attrs.field(factory=dict)
    """The queue of each open listener, by its URL, where the system reports it: of TCP listeners on Linux."""
    expiries: Mapping[str, datetime] = attrs.field(factory=dict)
    """The moment, in UTC, when each certificate that is in use expires, by its file. Empty without any, and for a `tls` layer with a context
    of the program's own."""

    @accepted.default
    def _sum(self) -> int:
        return self.active + sum(self.outcomes.values())


@attrs.frozen
class Stuck:
    """A request that was still running when its server gave up waiting for it."""

    peer: Address
    age: float
    stack: str
    """Stack of its thread, formatted as in a traceback; "" if it ran in another process."""


@attrs.frozen
class InWork:
    """What a server that was told to stop has yet to finish.

    requests: the number in work; a worker process or interpreter counts its idle connections, too.
    seconds: how long they may go on at most; None: without a limit.
    """

    requests: int = 0
    seconds: float | None = None

    def __str__(self) -> str:
        if not self.requests:
            return "no request in work"
        limit = "without a limit" if self.seconds is None else f"up to {max(0.0, round(self.seconds, 1)):g} s"
        return f"{self.requests} request{'s' * (self.requests > 1)} in work, {limit}"


@attrs.frozen
class DrainReport:
    """How the requests of a server ended when it stopped.

    finished: the number that ended by themselves after stop was requested.
    forced: the number that ended only after the deadline, when their sockets were shut down.
    stuck: the requests that did not end even then.
    """

    finished: int = 0
    forced: int = 0
    stuck: tuple[Stuck, ...] = ()

    def __str__(self) -> str:
        return f"{self.finished} finished, {self.forced} forced, {len(self.stuck)} stuck"
