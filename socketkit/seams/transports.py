"""Where requests come from: a transport's recipe, its live listener, and the layers between accept and handler."""

from __future__ import annotations

from typing import Any, Protocol

from socketkit.seams.types import Address, Kind, Request


class Transport(Protocol):
    """Recipe: where requests come from.

    `kind` says what its requests are. `requires` names what the platform must have (see `socketkit.composition.capabilities`).
    A recipe whose URL is more than one value may also have a class method `locate(text) -> dict`, which turns the part of the URL
    between ``://`` and ``?`` into its fields; without one the text fills the first field.
    """

    @property
    def kind(self) -> Kind:
        """What its requests are; an attribute of the class will do."""
        ...

    @property
    def url(self) -> str:
        """The place to listen on, as a user would type it."""
        ...

    def open(self) -> Listener:
        """Create, bind and activate the socket, in the thread that starts the server.

        Raises: ListenError, after closing whatever was opened.
        """
        ...


class Listener(Protocol):
    """Live transport: hands over one request at a time and knows nothing of threads.

    Used by one thread at a time. `socket` is the listening socket, or None for a transport without one. A listener of datagrams may have
    an attribute `dropped`, which any thread reads: how many were lost before they could be taken, None if that is not known.
    """

    socket: Any
    url: str

    @property
    def address(self) -> Address:
        """Where it listens, as `getsockname` gives it."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a request waits; -1 once closed."""
        ...

    def accept(self) -> tuple[Request, Address]:
        """Return the next request and who sent it; the caller owns the request.

        Never blocks. A stream request offers `shutdown(how)` and `close()`; a datagram is a tuple and needs no closing. One that
        is longer than the listener's `max_packet_size`, if it has that attribute, was cut, and is refused.
        Raises: BlockingIOError when nothing waits; any other OSError goes through the table of `socketkit._engine.intake`.
        """
        ...

    def close(self) -> None:
        """Release the socket and its path. Legal twice."""
        ...


class Layer(Protocol):
    """Recipe of a step between accept and handler, on stream connections.

    Called by the thread that is about to run the handler, never on the accept path, so it may block within its own deadline. One
    that returns another object in place of the socket, such as a TLS socket, says so with an attribute `replaces_socket = True`.
    """

    def wrap(self, request: Request, client_address: Address) -> tuple[Request, Address]:
        """Return the request and the peer as the next layer, or the handler, shall see them.

        Raises: OSError or ValueError to end the connection; the caller closes the request it passed in.
        """
        ...
