"""From listeners to units of work: what an intake takes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from socketkit._engine.connection import Connection, can_wait
from socketkit._engine.intake import verdict
from socketkit._engine.request import Reception, Whole
from socketkit._system.logs import Log
from socketkit._system.sockets import is_readable
from socketkit.handlers.base import unwrapped
from socketkit.seams import Address, Kind, Layer, Listener, Request, Unit

if TYPE_CHECKING:
    from socketkit._engine.admission import Admission
    from socketkit._engine.steps import RequestTemplate
    from socketkit.seams.parking import Parking

log = Log("socketkit.sources")

TRUNCATED = "truncated"
"""Why a datagram is refused that is larger than its listener takes."""

MOST_QUEUED = 4096
"""How many requests are taken from one listener's queue in the end: no system's queue is longer unless it is told to."""


class ListenerSource(Reception):
    """A listener as the intake sees it: readiness in, units of work out."""

    accepts = True  # `take` does, and not the unit it returns

    def __init__(  # noqa: PLR0913 - it ties a listener to a server, each end by name
        self,
        server: RequestTemplate,
        listener: Listener,
        accept: Callable[[], tuple[Request, Address]],
        *,
        kind: Kind,
        layers: tuple[Layer, ...],
        parking: Parking | None,
        once: bool,
        tell: Callable[..., None],
    ) -> None:
        super().__init__(server, parking, layers)
        self.url = listener.url
        self.once = once
        self.fileno = listener.fileno
        self.counted = kind == "stream"
        self._largest = getattr(listener, "max_packet_size", math.inf)
        self._accept = accept
        self._tell = tell

    def take(self) -> Unit | None:
        """Accept one request and return what runs it; None if it was parked or turned away. Raises: OSError."""
        return self._let_in(*self._accept_one())

    def turn_away(self, request: Request, client_address: Address, reason: str, reply: bytes = b"") -> None:
        """Refuse one that was accepted."""
        try:
            self.server._refuse_request(request, client_address, reason, reply)  # noqa: SLF001 - a server and its sources are one thing in two files
        except Exception:
            log.exception("a hook raised while a request of %s was turned away", client_address)

    def paused(self, error: OSError, seconds: float) -> None:
        """Tell the observers."""
        self._tell("accept_paused", self.url, error, seconds)

    def resumed(self, failures: int) -> None:
        """Tell the observers."""
        self._tell("accept_resumed", self.url, failures)

    # inside

    def _accept_one(self) -> tuple[Request, Address]:
        """Accept one request.

        Raises: OSError. What else a transport or an overridden `get_request` raises is about one request, and ends that.
        """
        try:
            return self._accept()
        except OSError:
            raise
        except Exception as error:
            log.exception("%s: accepting raised; the request is lost", self.url)
            raise OSError("accepting raised") from error

    def _let_in(self, request: Request, client_address: Address) -> Unit | None:
        """Receive it, unless it is a datagram that was cut: they come whole or not at all."""
        if isinstance(request, tuple) and len(request[0]) > self._largest:
            self.turn_away(request, client_address, TRUNCATED)
            return None
        return receive(self, request, client_address)


class GuardedSource(ListenerSource):
    """One that asks before it accepts, and about whom it has accepted."""

    admission: Admission  # set when all sources are there

    def take(self) -> Unit | None:
        """As `ListenerSource.take`. Raises: NoRoomError too."""
        admission = self.admission
        admission.permit(self)
        request, client_address = self._accept_one()
        reason = admission.objection(request, client_address)
        if reason is not None:
            self.turn_away(request, client_address, reason, admission.reply)
            return None
        return self._let_in(request, client_address)


def receive(reception: Reception, request: Request, client_address: Address) -> Unit | None:
    """Return the unit of work of a request that was just accepted; None if it was parked for its first byte."""
    parking, deadlines = reception.parking, reception.deadlines
    unit: Whole | None
    if parking is not None and can_wait(reception.server, request):
        unit = Connection(reception, parking, request, client_address).arrive()
    else:
        unit = Whole(reception, request, client_address)
        if deadlines is not None and not getattr(unwrapped(reception.server.RequestHandlerClass), "is_async", False):
            deadlines.listen_to(request)  # an event loop reads past the socket object
        reception.ledger.open(unit)
    if deadlines is not None and deadlines.asleep:
        deadlines.begin()
    return unit


def queued(source: Any) -> Iterator[Unit]:
    """Take what the kernel has queued for a source, and yield the units; what was parked is none."""
    for _ in range(MOST_QUEUED if source.accepts else 0):
        if source.once and not is_readable(source):
            return
        try:
            unit = source.take()
        except OSError as error:  # BlockingIOError: nobody waits
            if isinstance(error, BlockingIOError) or verdict(error) != "retry":
                return
        else:
            if unit is not None:
                yield unit
