"""Connections in an event loop: the loop opens them, holds them until a handler takes over, and encrypts them. Imports asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

from socketkit._system.tls import failure

UNLIMITED = 1e9
"""Seconds for a handshake. An event loop insists on a limit, but the server has one of its own, `Limits.handshake`."""


class LoopConnection(asyncio.Protocol):
    """A connection that the event loop has opened. It keeps what arrives until a handler's protocol takes over.

    Attributes:
        request: the socket, which the server closes.
        below: the loop's transport for the socket.
        transport: the transport to read from and write to: `below`, or the encrypted one above it.
    """

    below: asyncio.Transport
    transport: asyncio.Transport

    def __init__(self, request: socket.socket) -> None:
        self.request = request
        self._arrived = bytearray()
        self._has_ended = False
        self._is_encrypted = False
        self._losses: list[Exception | None] = []  # the argument of `connection_lost`, once it has been called

    @classmethod
    async def open(cls, request: socket.socket) -> LoopConnection:
        """Return the connection of a socket in the running loop."""
        connection = cls(request)
        await open_transport(request, connection)
        return connection

    @property
    def has_data(self) -> bool:
        """Whether something has arrived that nobody has read yet."""
        return bool(self._arrived)

    async def encrypt(self, context: ssl.SSLContext) -> None:
        """Shake hands as the server of TLS, and make `transport` the encrypted one. It does not read until the handler takes over.

        Raises: ConnectionAbortedError if the client has gone; OSError with OpenSSL's reason.
        """
        self._is_encrypted = True
        starting = asyncio.ensure_future(self._start_tls(context))
        try:
            await asyncio.sleep(0)  # it has begun
            self._pass_on()
            self.transport = await starting
        except (ssl.SSLError, ConnectionError) as error:
            raise failure(error, self.request, is_told=False) from error
        finally:
            starting.cancel()
        self.transport.pause_reading()

    async def _start_tls(self, context: ssl.SSLContext) -> asyncio.Transport:
        start_tls = asyncio.get_running_loop().start_tls
        transport = await start_tls(self.below, self, context, server_side=True, ssl_handshake_timeout=UNLIMITED)
        if transport is None or transport.get_extra_info("ssl_object") is None:  # what loops return if the connection is lost meanwhile
            raise ConnectionAbortedError
        return transport

    def _pass_on(self) -> None:
        """Give what has been read already to the protocol that shakes hands: uvloop reads as soon as it has opened a connection."""
        if self._has_ended or self._losses:
            raise ConnectionAbortedError
        protocol: Any = self.below.get_protocol()  # an `asyncio.BufferedProtocol`, at least in shape
        rest = memoryview(self._arrived)
        while rest:
            room = protocol.get_buffer(len(rest))
            size = min(len(rest), len(room))
            room[:size] = rest[:size]
            protocol.buffer_updated(size)
            rest = rest[size:]
        self._arrived = bytearray()

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Let a handler's protocol take over, with what has arrived."""
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()  # first, because the protocol may pause it again
        if self._arrived:
            protocol.data_received(bytes(self._arrived))
        if self._has_ended:
            protocol.eof_received()
        for error in self._losses:
            protocol.connection_lost(error)

    def abort(self) -> None:
        """Make the loop drop the connection at once, so that the server can close the socket."""
        for transport in (self.transport, self.below):
            with contextlib.suppress(AttributeError):  # asyncio raises this when it is closed
                transport.abort()

    # called by the loop

    def connection_made(self, transport: Any) -> None:
        """Begin with this transport. Code that has opened it itself calls this, too."""
        self.below = self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived += data

    def eof_received(self) -> bool:
        """Note the end. Return whether to leave the connection open, which is impossible with TLS."""
        self._has_ended = True
        return not self._is_encrypted

    def connection_lost(self, error: Exception | None) -> None:
        self._losses.append(error)


async def open_transport(request: socket.socket, protocol: asyncio.Protocol) -> asyncio.Transport:
    """Return a transport of the running loop for a socket, with this protocol. Its end does not close the socket."""
    request.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, _lend(request, loop))
    return transport


class _Lent(socket.socket):
    """A second socket object for a request's descriptor. Closing it only detaches it: the server closes the request."""

    def close(self) -> None:
        self.detach()

    __del__ = close


def _lend(request: socket.socket, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """Return a socket that an event loop's transport may close without closing the request."""
    if isinstance(loop, asyncio.SelectorEventLoop):
        return _Lent(request.family, request.type, request.proto, request.fileno())
    return request.dup()  # other loops, such as uvloop, close the descriptor itself and bypass the socket object
