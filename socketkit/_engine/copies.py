"""Copies of a composed server for other interpreters of this process, which share no objects with it, only memory and descriptors."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from socketkit._engine.steps import ENGINE
from socketkit._engine.tally import Tally
from socketkit._system.logs import Log
from socketkit.errors import IncompatibleError
from socketkit.seams import EVENTS, Dispatcher, Lifecycle, Listener, PackedReplica
from socketkit.seams.limits import Limits

if TYPE_CHECKING:
    from socketkit._engine.composed import ComposedEngine
    from socketkit._engine.intake import Intake
    from socketkit._engine.run import Run

log = Log("socketkit.server")

_REMEDY = "leave it out, or use prefork, whose processes are copied whole"


def pack(engine: ComposedEngine, tally: Tally, dispatcher: Dispatcher | None, pace: float) -> PackedReplica:
    """Return what another interpreter needs to serve as this engine's server does. Owner: the caller.

    Raises: IncompatibleError, naming what cannot be copied; OSError if no descriptor is available.
    """
    server = engine.server
    copy = ServerCopy(
        type(server),
        server.RequestHandlerClass,
        tuple(_CopiedListener.of(listener, transport) for listener, transport in engine.opened),
        dispatcher or engine.usual_dispatcher(),
        server.lifecycle,
        engine.limits_of_each,
        tuple(_copied_observers(server, engine.observers.everyone)),
        _attributes(server),
        pace,
    )
    try:
        parcel = pickle.dumps(copy)
    except Exception as error:
        raise _refusal(server, copy, error) from error
    with contextlib.ExitStack() as undo:
        descriptors = list[int]()
        for listener, _ in engine.opened:
            descriptors.append(os.dup(listener.fileno()))
            undo.callback(os.close, descriptors[-1])
        undo.pop_all()
    return PackedReplica(parcel, tuple(descriptors), tally.memory)


@attrs.frozen
class _CopiedListener:
    """A transport that is open already, and how to make its listener from a socket."""

    transport: Any
    make: Callable[[socket.socket], Listener]

    @classmethod
    def of(cls, listener: Any, transport: Any) -> _CopiedListener:
        """Raises: IncompatibleError."""
        if not hasattr(listener, "copier"):
            reason = "has listeners that cannot be copied into another interpreter"
            raise IncompatibleError(transport.url, reason, "choose another transport, such as tcp, or another dispatcher")
        return cls(transport, listener.copier())


@attrs.frozen
class _OpenTransport:
    """The recipe, in another interpreter, of a listener that is there already."""

    url: str
    kind: str
    layers: tuple[Any, ...]
    _listener: Listener

    def open(self) -> Listener:
        return self._listener


@attrs.frozen
class ServerCopy:
    """A composed server in transit."""

    kind: type[Any]
    handler: Any
    listeners: tuple[_CopiedListener, ...]
    dispatcher: Dispatcher
    lifecycle: Lifecycle
    limits: Limits
    observers: tuple[object, ...]
    attributes: dict[str, Any]
    pace: float

    def enter(
        self,
        sockets: Sequence[socket.socket],
        counts: memoryview,
        opened: Callable[[Intake], None],
        settled: Callable[[int], None] | None = None,
    ) -> Run:
        """As `socketkit.seams.UnpackedReplica.enter`."""
        transports = [
            _OpenTransport(each.transport.url, each.transport.kind, tuple(getattr(each.transport, "layers", ())), each.make(sock))
            for each, sock in zip(self.listeners, sockets, strict=True)
        ]
        server = self.kind._copied(  # noqa: SLF001 - a server and its engine form one unit
            self.attributes,
            transports,
            self.handler,
            dispatcher=self.dispatcher,
            lifecycle=self.lifecycle,
            limits=self.limits,
            observers=self.observers,
        )
        engine: ComposedEngine = vars(server)[ENGINE]
        engine.open()
        return engine.replicate(self.dispatcher, Tally(counts), opened, settled, self.pace)


_OWN = {"transports", "RequestHandlerClass", "dispatcher", "lifecycle", "limits", "socket", "server_address"}
_PRIVATE = {"_clock", "_Server__engine", "_socketkit_layered", ENGINE}


def _attributes(server: Any) -> dict[str, Any]:
    """Return the attributes that the program has given the server: all but those that every server has."""
    return {name: value for name, value in vars(server).items() if name not in _OWN | _PRIVATE}


def _refusal(server: Any, copy: ServerCopy, error: Exception) -> IncompatibleError:
    """Return the error that names the part of the copy that cannot be pickled. error: what pickling the whole has raised."""
    parts = {
        "its handler": copy.handler,
        "its class": copy.kind,
        "its lifecycle": copy.lifecycle,
        "the inner dispatcher": copy.dispatcher,
        "its limits": copy.limits,
        **{f"its attribute {name}": value for name, value in copy.attributes.items()},
        **{f"its transport {each.transport.url}": each for each in copy.listeners},
    }
    kind = type(server).__name__
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as its_own:  # noqa: BLE001 - pickling may raise anything
            return IncompatibleError(kind, f"cannot copy {name} into another interpreter ({its_own})", _REMEDY)
    return IncompatibleError(kind, f"cannot be copied into another interpreter ({error})", _REMEDY)


def _copied_observers(server: Any, observers: Sequence[object]) -> Iterator[object]:
    """Yield the observers of requests that can be copied; warn of each other one. All other events happen in the main interpreter."""
    events = [each for each in EVENTS if each.startswith(("request_", "handler_", "process_"))]
    for observer in observers:
        if not any(callable(getattr(observer, event, None)) for event in events):
            continue
        try:
            pickle.dumps(observer)
        except Exception as error:  # noqa: BLE001 - pickling may raise anything
            log.warning(
                "%r is not told of the requests of %r, because it cannot be copied into another interpreter: %s", observer, server, error
            )
        else:
            yield observer
