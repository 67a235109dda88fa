"""Handlers that are coroutines of trio, one instance for each request."""

from __future__ import annotations

import errno
import socket
from functools import cached_property
from typing import Any, ClassVar

import trio

from socketkit import AsyncRequestHandler
from socketkit.errors import IncompatibleError
from socketkit_trio._stream import RequestStream

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1
"""Seconds between two attempts to send a datagram while there is no room for it."""


class TrioStreamRequestHandler(AsyncRequestHandler):
    """Handles a connection through `stream`: await `stream.receive_some()` and `stream.send_all(data)`.

    `setup`, `handle` and `finish` are awaited in this order, in a task of its own, and may open nurseries. The server closes the
    connection afterwards. A drain at its deadline cancels the task; `finish` still runs, but may wait only inside a shielded cancel scope.

    Attributes:
        stream: the client's connection. With TLS, `request` is the `ssl.SSLSocket`, which knows what was agreed on.
    """

    async_library: ClassVar[str] = "trio"
    request_kinds: ClassVar[frozenset[str]] = frozenset({"stream"})
    takes_any_socket: ClassVar[bool] = True

    stream: RequestStream

    @cached_property
    def peer_certificate(self) -> Any:
        """The client's certificate, as `ssl.SSLSocket.getpeercert` returns it; None without one, or without TLS."""
        certificate = getattr(self.request, "getpeercert", None)
        return None if certificate is None else certificate() or None

    async def setup(self) -> None:
        """Open `stream` on the connection."""
        if not isinstance(self.request, socket.socket):
            kind = type(self.request).__name__
            raise IncompatibleError(
                type(self).__name__, f"cannot read from a {kind}", "serve it on a transport whose connections are sockets"
            )
        limits = getattr(self.server, "limits", None)  # classic servers have none
        self.stream = RequestStream(self.request, getattr(limits, "write_stall", None))

    def leave_loop(self) -> None:
        """Have the event loop drop the connection. Called once, after `finish`, also if `setup` or `finish` has raised."""
        if hasattr(self, "stream"):
            self.stream.leave_loop()


class TrioDatagramRequestHandler(AsyncRequestHandler):
    """Handles a datagram: read it from `packet`, and await `reply` any number of times, or not at all.

    Attributes:
        packet: the datagram.
        socket: the socket that received it, shared by all requests of the listener.
    """

    async_library: ClassVar[str] = "trio"
    request_kinds: ClassVar[frozenset[str]] = frozenset({"datagram"})

    packet: bytes
    socket: Any

    async def setup(self) -> None:
        """Set `packet` and `socket` from the request."""
        self.packet, self.socket = self.request

    async def reply(self, data: bytes) -> None:
        """Send a datagram to the sender, as soon as the socket has room for it.

        Raises: OSError; EDESTADDRREQ if the sender has no address, such as a Unix socket that was never bound.
        """
        if not self.client_address:
            raise OSError(errno.EDESTADDRREQ, "the sender has no address to reply to")
        await trio.lowlevel.checkpoint()
        pause = FIRST_PAUSE
        while True:
            try:
                self.socket.sendto(data, socket.MSG_DONTWAIT, self.client_address)
            except (
                BlockingIOError
            ):  # only one task could wait for the socket, and a Unix socket counts as writable though a peer's queue is full
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return
