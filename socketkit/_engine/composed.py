"""The engine of a composed server: its listeners, and the limits, admission and deadlines of each run."""

from __future__ import annotations

import contextlib
import itertools
import socket
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from socketkit._engine import connection, renewal  # noqa: F401 - connection: now, because a lifecycle may change the user before it serves
from socketkit._engine.admission import Admission
from socketkit._engine.deadlines import Deadlines, keep_in_child, limit_stalls
from socketkit._engine.descriptors import fitted
from socketkit._engine.engine import Engine
from socketkit._engine.intake import Intake
from socketkit._engine.observers import Observers
from socketkit._engine.run import Run
from socketkit._engine.sources import ListenerSource
from socketkit._engine.steps import replaces
from socketkit._engine.tally import Tally
from socketkit._engine.work import StartedDispatcher
from socketkit._system.children import keep_private
from socketkit._system.logs import Log
from socketkit.handlers.base import unwrapped
from socketkit.seams import (
    Address,
    Clock,
    Dispatcher,
    Lifecycle,
    Listener,
    PackedReplica,
    Parking,
    Request,
    Transport,
    Unit,
    open_listeners,
)
from socketkit.seams.limits import Limits
from socketkit.seams.stats import Queue, Stats

if TYPE_CHECKING:
    from datetime import datetime

log = Log("socketkit.server")

_started: dict[int, weakref.ref[ComposedEngine]] = {}
"""By identity. No `weakref.WeakSet`: before Python 3.14 it cannot be looked through while another thread adds to it."""


def note_started(engine: ComposedEngine) -> None:
    """Note that the server of this engine serves in a thread of its own."""
    key = id(engine)
    _started[key] = weakref.ref(engine, lambda _: _started.pop(key, None))


def started() -> list[ComposedEngine]:
    """Return the engines of servers that serve, or have served, in a thread of their own. From any thread."""
    return [engine for reference in list(_started.values()) if (engine := reference()) is not None]


class ComposedEngine(Engine):
    """The engine of a composed server."""

    def __init__(self, server: Any, usual: Callable[[], Dispatcher], observers: Observers, clock: Clock) -> None:
        super().__init__(server, usual, observers, clock)
        self._opened: list[tuple[Listener, Transport]] = []  # a transport may have several listeners
        self._dropped: int | None = 0  # datagrams dropped at listeners since closed; None: unknown
        self._fitted: Limits | None = None
        self._layers: dict[int, tuple[Any, ...]] = {}  # by the identity of their transport; started when the server first opens
        self._complained = False

    @property
    def lifecycle(self) -> Lifecycle:
        lifecycle: Lifecycle = self.server.lifecycle
        return lifecycle

    @property
    def limits(self) -> Limits:
        limits: Limits = self.server.limits
        return limits

    @property
    def address(self) -> str:
        return ", ".join(self.server.urls)

    def recipe(self) -> Dispatcher:
        dispatcher: Dispatcher = self.server.dispatcher
        return dispatcher

    def turn(self) -> Callable[[], object] | None:
        return self._act if replaces(self.server, "service_actions") else None

    def _act(self) -> None:
        """Call `service_actions`. Serving goes on if it raises; only the first error is logged."""
        try:
            self.server.service_actions()
        except Exception:
            if not self._complained:
                self._complained = True
                log.exception("service_actions of %r failed; further failures of it are not logged", self.server)

    # listeners

    @property
    def opened(self) -> list[tuple[Listener, Transport]]:
        """The open listeners, each with its transport."""
        return self._opened

    @property
    def listeners(self) -> list[Listener]:
        """The open listeners."""
        return [listener for listener, _ in self._opened]

    def prepare(self) -> None:
        """Start the dispatcher, which may still refuse, then open the listeners. If either fails, neither is left open."""
        self.start_dispatcher()
        try:
            self.open()
            self._fit_limits()
        except BaseException:
            live, self.live = self.live, None
            if live is not None:
                live.close()
            raise

    def open(self) -> None:
        """Start the layers, then open every listener, or none. Raises: ConfigError, ListenError.

        That is before any fork: workers then share what each start makes anew, such as the keys of session tickets.
        """
        with self._preparing:
            if not self._opened:
                self._open()

    def _open(self) -> None:
        if not self._layers:
            self._layers = {id(transport): _started_layers(transport) for transport in self.server.transports}
            self.server._socketkit_layered = any(self._layers.values())  # noqa: SLF001 - a server and its engine form one unit
        with contextlib.ExitStack() as opened:
            pairs = list[tuple[Listener, Transport]]()
            for transport in self.server.transports:
                for listener in open_listeners(transport):
                    opened.callback(listener.close)
                    pairs.append((listener, transport))
            opened.pop_all()
        self._opened = pairs
        self.server.socket, self.server.server_address = self.listeners[0].socket, self.listeners[0].address

    def close_listeners(self, *, streams_only: bool = False) -> None:
        """As `Engine.close_listeners`. Raises: the last error of a listener, once all are closed."""
        before = self._opened
        self._opened = [pair for pair in before if streams_only and pair[1].kind == "datagram"]
        closing = [pair[0] for pair in before if pair not in self._opened]
        self._dropped = _sum((self._dropped, *map(_drops, closing)))
        with contextlib.ExitStack() as stack:
            for listener in closing:
                stack.callback(listener.close)

    @property
    def max_handlers(self) -> int | None:
        """See `socketkit.Server.max_handlers`."""
        dispatcher: Any = self.recipe()
        if getattr(dispatcher, "inner", dispatcher) is None:
            dispatcher = attrs.evolve(dispatcher, inner=self.usual_dispatcher())
        bound = getattr(dispatcher, "max_handlers", None)
        return None if bound is None else bound(unwrapped(self.server.RequestHandlerClass))

    def stats(self) -> Stats:
        dropped = _sum((self._dropped, *map(_drops, self.listeners)))
        return attrs.evolve(self.ledger.stats(), dropped=dropped, queues=self._queues(), expiries=self._expiries())

    def _queues(self) -> dict[str, Queue]:
        found = {listener.url: getattr(listener, "queue", None) for listener in self.listeners}
        return {url: queue for url, queue in found.items() if queue is not None}

    # requests

    def take_one(self, timeout: float | None) -> Unit | None:
        """Return the unit of one request; None if none arrives within `timeout` seconds (None: no limit)."""
        self.open()
        live = self._started()
        with Intake(self._sources(live, self._limits_in_force(live), None, None), clock=self.clock) as intake:
            return intake.take(timeout)

    def sources(self, run: Run) -> list[ListenerSource]:
        live = self._started()
        limits = self._limits_in_force(live)
        parking = live.parking
        if parking is not None and limits.idle is not None:
            parking = attrs.evolve(parking, idle=limits.idle)
        return self._sources(live, limits, parking, self._deadlines(live, limits, run), in_place=live.runs_in_place)

    def process(self, request: Request, client_address: Address) -> None:
        """Give a request to the dispatcher."""
        self._started().process(request, client_address)

    def _started(self) -> StartedDispatcher:
        live = self.start_dispatcher()
        assert live is not None  # noqa: S101 - `recipe` always returns one
        return live

    def _sources(
        self, live: StartedDispatcher, limits: Limits, parking: Parking | None, deadlines: Deadlines | None, *, in_place: bool = False
    ) -> list[ListenerSource]:
        """Return a source for each listener, which calls `get_request` instead if that is overridden."""
        server = self.server
        overridden = replaces(server, "get_request")
        sources: list[ListenerSource] = []
        for listener, transport in self._opened:
            accept: Callable[[], tuple[Request, Address]] = server.get_request if overridden else listener.accept
            if limits.write_stall is not None and transport.kind == "stream":
                accept = limit_stalls(listener, accept, limits.write_stall)
            if live.adapt is not None:
                accept = partial(_adapted, accept, live.adapt)
            layers = self._layers[id(transport)]
            upgrade = layers[-1] if layers and getattr(transport.layers[-1], "upgrade", False) else None  # type: ignore[attr-defined]
            layers = layers if upgrade is None else layers[:-1]
            source = ListenerSource(server, listener, accept, transport, parking, layers=layers, in_place=in_place, once=overridden)
            source.upgrade = upgrade
            source.deadlines = deadlines if source.counted else None
            sources.append(source)
        self.ledger.mixed = not all(source.counted for source in sources)
        guarded = [source for source in sources if Admission.is_needed(limits, counted=source.counted)]
        if guarded:
            admission = Admission(limits, self.ledger, guarded)
            for source in guarded:
                source.admission = admission
        return sources

    @property
    def limits_of_each(self) -> Limits:
        """The limits of each process or interpreter that serves, once the listeners are open."""
        limits: Limits = self.server.limits if self._fitted is None else self._fitted
        return limits

    def _limits_in_force(self, live: StartedDispatcher) -> Limits:
        """Return the limits for each serving process, as adjusted by the dispatcher and the system."""
        return self.limits_of_each if live.narrow is None else live.narrow(self.limits_of_each)

    def _fit_limits(self) -> None:
        """Fit the limits to the resources of this process, or of each process forked from it; then share them among its interpreters."""
        dispatcher, narrow = self.recipe(), self._started().narrow
        shared = self.server.limits.shared_by(getattr(dispatcher, "processes", 1))
        recipe = getattr(dispatcher, "inner", None) or dispatcher
        interpreters = getattr(dispatcher, "interpreters", 1)
        others = interpreters * (len(self.listeners) + (getattr(recipe, "workers", None) or 0))
        self._fitted = fitted(shared if narrow is None else narrow(shared), others).shared_by(interpreters)

    def _deadlines(self, live: StartedDispatcher, limits: Limits, run: Run) -> Deadlines | None:
        """Return the deadlines of a run; None if the limits set none. A child forked for a request keeps its other ones itself."""
        if live.cut is not None:
            limits = attrs.evolve(limits, first_byte=None, handshake=None, write_stall=None)
        layers = list(itertools.chain.from_iterable(self._layers.values()))
        if not layers:
            limits = attrs.evolve(limits, handshake=None)
        if not any(getattr(layer, "replaces_socket", False) for layer in layers):
            limits = attrs.evolve(limits, write_stall=None)  # the system keeps it
        if not Deadlines.are_needed(limits):
            return None
        return Deadlines(limits, self.ledger, run.call_later, speaks_first=self._speaks_first, cut=live.cut)

    def _speaks_first(self) -> bool:
        return bool(getattr(unwrapped(self.server.RequestHandlerClass), "speaks_first", False))

    # layers

    def keep_renewing(self, run: Run) -> None:
        for layer in self._layers_with("renew"):
            try:
                run.call_later(0.0, partial(renewal.keep_renewing, layer, run.call_later))
            except RuntimeError as error:  # no thread is available for the timer
                log.warning("%r will not be renewed: %s", layer, error)

    def renew(self) -> None:
        for layer in self._layers_with("renew"):
            renewal.renew(layer)
        live = self.live
        if live is not None and live.renew_workers is not None:
            live.renew_workers()

    def _expiries(self) -> dict[str, datetime]:
        return {name: moment for layer in self._layers_with("expiries") for name, moment in layer.expiries().items()}

    def _layers_with(self, power: str) -> list[Any]:
        """Return the live layers that have a power."""
        return [layer for layer in itertools.chain.from_iterable(self._layers.values()) if hasattr(layer, power)]

    # forked processes

    def forget_parent(self, request: Request) -> None:
        """As `Engine.forget_parent`: also close the listeners, except the socket that a datagram is answered on."""
        _forget_others(self)
        if not isinstance(request, tuple):
            self.close_listeners()
        super().forget_parent(request)
        keep_in_child(self.server.limits, self.ledger, request, speaks_first=self._speaks_first)

    def become_replica(
        self, dispatcher: Dispatcher | None, tally: Tally, opened: Callable[[Intake], None], settled: Callable[[int], None] | None
    ) -> Run:
        _forget_others(self)
        for listener, transport in self._opened:
            if transport.kind == "stream" and isinstance(listener.socket, socket.socket):
                keep_private(listener.socket)  # what a handler forks may outlive this process, and must not hold the port
        self.server.dispatcher = dispatcher or self.usual_dispatcher()
        return super().become_replica(self.server.dispatcher, tally, opened, settled)

    # copies in other interpreters

    def pack(self, tally: Tally, dispatcher: Dispatcher | None) -> PackedReplica:
        from socketkit._engine import copies  # noqa: PLC0415 - for dispatchers with interpreters only

        assert self.run is not None  # noqa: S101 - the dispatcher that drives this run packs it
        return copies.pack(self, tally, dispatcher, self.run.pace)


def _forget_others(engine: ComposedEngine) -> None:
    """In a forked child: close the listeners and loops of other servers."""
    for other in started():
        if other is engine:
            continue
        other.close_listeners()
        if other.run is not None:
            other.run.close()


def _started_layers(transport: Transport) -> tuple[Any, ...]:
    """Return the layers of a transport, those with a live part started. Raises: ConfigError."""
    recipes: tuple[Any, ...] = getattr(transport, "layers", ())
    return tuple(each.start() if hasattr(each, "start") else each for each in recipes)


def _drops(listener: Listener) -> int | None:
    """Return how many datagrams the system dropped at a listener: None if unknown, 0 for other kinds."""
    dropped: int | None = getattr(listener, "dropped", 0)
    return dropped


def _sum(counts: Sequence[int | None]) -> int | None:
    """Return the sum; None if any count is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _adapted(accept: Callable[[], tuple[Request, Address]], adapt: Callable[[Request], Request]) -> tuple[Request, Address]:
    request, client_address = accept()
    return adapt(request), client_address
