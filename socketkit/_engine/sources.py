"""The sources that an intake takes units of work from, for composed and classic servers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from socketkit._engine.accepting import Source, verdict
from socketkit._engine.encrypted import ListenerTLS
from socketkit._engine.request import RequestUnit
from socketkit._engine.steps import STEPS, engine_of, replaced_steps
from socketkit._system.forking import forks
from socketkit._system.logs import Log
from socketkit._system.sockets import is_readable
from socketkit._system.tls import shakes_hands
from socketkit.handlers.base import unwrapped
from socketkit.seams.events import Refusal

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.admission import Admission
    from socketkit._engine.deadlines import Deadlines
    from socketkit._engine.steps import RequestTemplate
    from socketkit.seams import Address, Layer, Listener, Parking, Request, ShakesHands, Transport, Unit

log = Log("socketkit.sources")

TRUNCATED = Refusal("truncated", "truncated")
"""The reason for refusing a datagram larger than its listener accepts."""

MOST_QUEUED = 4096
"""Most requests taken from one listener's queue at the end of a run: longer than any system's default queue."""


class RequestSource(Source):
    """A source of requests for one server; holds what all units taken from one listener share.

    parking: how its connections are parked; None: never. layers: the layers that each request passes through first.
    in_clear: a client that has not passed them yet can read a reply.
    in_place: the dispatcher runs each unit in the calling thread; otherwise `process_request` hands the request on.
    """

    accepts = True  # `take` accepts the request, rather than the unit that it returns
    upgrade: Layer | ShakesHands | None = None  # the layer that its connections pass when their handler asks for it, if any
    deadlines: Deadlines | None = None  # the deadlines of its connections, if any
    admission: Admission | None = None  # what is checked before each accept, and of the peer after it, if anything

    def __init__(
        self, server: RequestTemplate, parking: Parking | None, layers: tuple[Layer | ShakesHands, ...] = (), *, in_place: bool = False
    ) -> None:
        self.server = server
        self.engine = engine_of(server)
        self.ledger = self.engine.ledger
        self.parking = parking
        if parking is not None:
            from socketkit._engine.connection import Connection  # noqa: PLC0415 - for dispatchers that park
            from socketkit._engine.conversation import can_wait  # noqa: PLC0415 - as above

            self._connection, self._can_wait = Connection, can_wait
        self.layers = layers
        self.knows_clients = not any(getattr(layer, "names_client", False) for layer in layers)
        self.in_clear = not any(getattr(layer, "replaces_socket", False) for layer in layers)
        self.behind = forks.behind
        self._straight = in_place and not layers and not replaced_steps(server) and not self.ledger.observers.watch_handlers

    def goes_straight(self) -> bool:
        """Return whether requests go straight to their handler, without layers, overridden steps, or observers of handlers."""
        return self._straight and self.server.__dict__.keys().isdisjoint(STEPS)

    def receive(self, request: Request, client_address: Address) -> Unit | None:
        """Return the unit of work of a just accepted request; None if it was parked for its first byte."""
        parking, deadlines = self.parking, self.deadlines
        unit: RequestUnit | None
        if parking is not None and (self.layers or self._can_wait(self.server, request)):
            unit = self._connection(self, parking, request, client_address).arrive()
        else:
            unit = RequestUnit(self, request, client_address)
            if deadlines is not None and not getattr(unwrapped(self.server.RequestHandlerClass), "is_async", False):
                deadlines.listen_to(request)  # an event loop bypasses the socket object
            self.ledger.open(unit)
        if deadlines is not None and deadlines.asleep:
            deadlines.begin()
        return unit

    def admits(self, admission: Admission, request: Request, client_address: Address) -> bool:
        """Return whether to serve a request that was just accepted; otherwise turn it away."""
        reason = admission.objection(self, request, client_address)
        if reason is None:
            return True
        self._turn_away(request, client_address, reason, admission.reply)
        return False

    def _turn_away(self, request: Request, client_address: Address, reason: str, reply: bytes = b"") -> None:
        try:
            self.engine.refuse_request(request, client_address, reason, reply if self.in_clear else b"")
        except Exception:
            log.exception("a hook raised while a request of %s was turned away", client_address)

    def queued(self, has_time: Callable[[], bool]) -> Iterator[Unit]:
        """Take the requests queued in the kernel and yield their units; parked connections are not yielded.

        has_time: whether to go on where a `get_request` may block.
        """
        for _ in range(MOST_QUEUED if self.accepts else 0):
            if self.once and not (is_readable(self) and has_time()):
                return
            try:
                unit = self.take()
            except OSError as error:  # BlockingIOError: the queue is empty
                if isinstance(error, BlockingIOError) or verdict(error) != "retry":
                    return
            else:
                if unit is not None:
                    yield unit


class ListenerSource(RequestSource):
    """A listener of a composed server."""

    def __init__(  # noqa: PLR0913 - it connects a listener to a server, each part by name
        self,
        server: RequestTemplate,
        listener: Listener,
        accept: Callable[[], tuple[Request, Address]],
        transport: Transport,
        parking: Parking | None,
        *,
        layers: tuple[Any, ...] = (),
        in_place: bool,
        once: bool,
    ) -> None:
        super().__init__(server, parking, layers, in_place=in_place)
        self.url = listener.url
        self.once = once
        self.fileno = listener.fileno  # type: ignore[method-assign] # saves one call
        self.counted = transport.kind == "stream"
        self._largest = getattr(listener, "max_packet_size", math.inf)
        self._accept = accept

    def take(self) -> Unit | None:
        """Accept one request and return its unit; None if it was parked or refused.

        Raises: NoRoomError; OSError. Any other error of a transport or an overridden `get_request` is logged and raised as OSError.
        """
        admission = self.admission
        if admission is not None:
            admission.permit(self)
        try:
            request, client_address = self._accept()
        except OSError:
            raise
        except Exception as error:
            log.exception("%s: accepting raised; the request is lost", self.url)
            raise OSError("accepting raised") from error
        if admission is not None and not self.admits(admission, request, client_address):
            return None
        if isinstance(request, tuple) and len(request[0]) > self._largest:  # deliver datagrams whole or not at all
            self._turn_away(request, client_address, TRUNCATED)
            return None
        return self.receive(request, client_address)

    def paused(self, error: OSError, seconds: float) -> None:
        self.engine.tell("accept_paused", self.url, error, seconds)

    def resumed(self, failures: int) -> None:
        self.engine.tell("accept_resumed", self.url, failures)


class ClassicSource(RequestSource):
    """A classic server as the loop sees it: uses the server's current hooks, which a program may replace at any time.

    turn: the program's own function to take and handle one request, called with this source; None: it has none.
    accept: accepts one request without ever blocking; None: use `get_request`, once per report of the selector, as it might block.
    """

    def __init__(
        self,
        server: Any,
        live: Any,
        turn: Callable[[ClassicSource], None] | None,
        accept: Callable[[], tuple[Request, Address]] | None,
    ) -> None:
        layers = (ListenerTLS(),) if shakes_hands(getattr(server, "socket", None)) else ()
        super().__init__(server, None if live is None else live.parking, layers, in_place=live is not None and live.runs_in_place)
        self.url = str(getattr(server, "server_address", ""))
        self.once = accept is None
        self.accepts = turn is None
        self._server = server
        self._turn = turn
        self._accept = accept
        self._adapt = None if live is None else live.adapt
        self._booked = live is not None

    def fileno(self) -> int:
        number: int = self._server.fileno()
        return number

    def take(self) -> Unit | None:
        """Accept one request and return its unit, or return a unit that accepts and runs one; None if it was parked."""
        server = self._server
        if self._turn is not None:
            return partial(self._turn, self)
        admission = self.admission
        if admission is not None:
            admission.permit(self)
        request, client_address = server.get_request() if self._accept is None else self._accept()
        if self._adapt is not None:
            request = self._adapt(request)
        if admission is not None and not self.admits(admission, request, client_address):
            return None
        if self._booked:
            return self.receive(request, client_address)
        return partial(self.engine.begin_request, request, client_address)

    def failed(self, error: OSError) -> None:
        """Handle an accept error, as `ACCEPT_ERRORS` says. Raises: the error, if the server is closed."""
        if not isinstance(error, BlockingIOError):
            self.intake.accepting.failed(self, error)
