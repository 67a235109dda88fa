"""Where requests come from: a transport's recipe, its live listener, and the layers between accept and handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from socketkit.seams.types import Address, Kind, Request


class Transport(Protocol):
    """Recipe: where requests come from. It may have the traits `Requires`, `Located` and `OpensSeveral`."""

    @property
    def kind(self) -> Kind:
        """The kind of its requests. A class attribute is enough."""

    @property
    def url(self) -> str:
        """The URL to listen on, as a user would type it."""

    def open(self) -> Listener:
        """Create, bind and activate the socket; called in the thread that starts the server.

        Raises: ListenError, after closing anything it has opened.
        """


def open_listeners(transport: Transport) -> Sequence[Listener]:
    """Open a transport, and return all its listeners: those of its `open_all`, or the one of its `open`. Raises: ListenError."""
    open_all: Callable[[], Sequence[Listener]] | None = getattr(transport, "open_all", None)
    return [transport.open()] if open_all is None else open_all()


class Listener(Protocol):
    """Live transport: returns one request at a time.

    Only one thread at a time uses it. `socket` is the listening socket; None for a transport without one. A datagram listener may have
    an attribute `dropped`, which any thread may read: the number of datagrams lost before they could be taken; None if unknown. A stream
    listener may have an attribute `queue`, the same way: a `socketkit.seams.Queue`, or None if unknown.
    """

    socket: Any
    url: str

    @property
    def address(self) -> Address:
        """The address it listens on, in the form of `getsockname`."""

    def fileno(self) -> int:
        """Return the descriptor that is readable while a request waits; -1 once closed."""

    def accept(self) -> tuple[Request, Address]:
        """Return the next request and its sender's address. The caller owns the request.

        Never blocks. A stream request has `shutdown(how)` and `close()`. A datagram is a tuple and needs no closing. If the listener
        has `max_packet_size`, a longer datagram counts as truncated and is refused.
        Raises: BlockingIOError when no request waits; the server looks up any other OSError in `socketkit._engine.accepting`.
        """

    def close(self) -> None:
        """Release the socket and its path. May be called twice."""


class Layer(Protocol):
    """Recipe: a step between accept and handler on stream connections, in its simple shape; the others are `ShakesHands` and `Starts`.

    Any may have the traits `Checks`, `NeedsSocket`, `ReplacesSocket` and `NamesClient`. The thread that is about to run the handler calls
    it, never the accept path, so it may block. `Limits.handshake` bounds all layers of a connection together.
    """

    def wrap(self, request: Request, client_address: Address) -> tuple[Request, Address]:
        """Return the request and the peer's address for the next layer or the handler.

        Raises: OSError or ValueError to end the connection, or `Answered`; the caller closes the request that it passed in.
        """


class Handshake(Protocol):
    """One connection on its way through a layer. One thread at a time uses it.

    request: the request as it is now, perhaps already another object than the one that the layer got. The server watches and closes it.
    sends: whether the handshake waits until it can send, not until it can receive.
    """

    request: Request

    @property
    def sends(self) -> bool:
        """See above. An attribute is enough."""

    def go_on(self) -> Address | None:
        """Do what can be done without waiting. Return the client's address once the handshake is over; None while it has to wait.

        It reads nothing that is meant for the next layer or the handler.
        Raises: OSError or ValueError to end the connection, with a reason for the log, or `Answered`.
        """
