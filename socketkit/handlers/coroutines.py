"""Asynchronous request handlers, one instance for each request.

A handler's constructor only registers the new handler; the server that constructs it then awaits its methods. `finish_request`
therefore works, and can be overridden, as for every other handler.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import weakref
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from socketkit._system.logs import Log
from socketkit._system.sockets import DONT_WAIT, reset
from socketkit.errors import IncompatibleError, UpgradeError
from socketkit.seams import Address, Request
from socketkit.seams.replies import ReplySocket

if TYPE_CHECKING:  # asyncio takes longer to import than all of socketkit, and most programs do not need it
    import asyncio
    import ssl

    from socketkit._system.loop_connections import LoopConnection

log = Log("socketkit.template")

_made: ContextVar[list[AsyncRequestHandler] | None] = ContextVar("_made", default=None)


@contextlib.contextmanager
def constructing() -> Iterator[list[AsyncRequestHandler]]:
    """Yield a list that collects the handlers constructed inside this block; the caller awaits them."""
    made: list[AsyncRequestHandler] = []
    token = _made.set(made)
    try:
        yield made
    finally:
        _made.reset(token)


class AsyncRequestHandler:
    """Handles one request in an event loop: `setup`, `handle` and `finish` are awaited in this order.

    `finish` is awaited even if `handle` raises or is cancelled, but not if `setup` raises. Override any of the three. They share the
    loop's thread with all other requests, so they must not block.

    Derive from this class to write handlers for the event loop of another library. The constructor only registers the handler; the
    server awaits it afterwards, and closes the request.

    Attributes:
        async_library: the library for whose event loop it is written: see `socketkit.seams.UsesAsyncLibrary`.
        request: the connected socket (stream), which may still block, or (data, socket) (datagram).
        client_address: the peer's address, as the transport returns it.
        server: the server that took the request.
    """

    is_async: ClassVar[bool] = True
    async_library: ClassVar[str] = "asyncio"

    def __init__(self, request: Request, client_address: Address, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        made = _made.get()
        if made is None:
            remedy = f"serve it with the dispatcher {self.async_library}"
            raise IncompatibleError(type(self).__name__, "is asynchronous, and nothing here awaits it", remedy)
        made.append(self)

    async def setup(self) -> None:
        """Prepare for `handle`. The default does nothing."""

    async def handle(self) -> None:
        """Do all the work for the request. The default does nothing."""

    async def finish(self) -> None:
        """Clean up after `handle`. The default does nothing."""

    def leave_loop(self) -> None:
        """Have the event loop drop the connection, so that the server can close it. The default does nothing.

        Called once, after everything else, also if `setup` or `finish` has raised. It does not wait, and raises nothing.
        """


class AsyncStreamRequestHandler(AsyncRequestHandler):
    """Handles a connection through asyncio's streams: `reader` to read the request, `writer` to write the reply.

    Call ``await self.writer.drain()`` after writing: it waits for a slow client, so that the reply does not pile up in memory.

    With TLS, ``self.writer.get_extra_info("ssl_object")`` is the `ssl.SSLObject`, which knows what was agreed on.

    Attributes:
        limit: bytes that `reader` buffers before the client has to wait; also the longest line of `readline`.
        flush_timeout: seconds that the client may read nothing of the rest of the reply after `handle` has ended; None: no limit.
    """

    request_kinds: ClassVar[frozenset[str]] = frozenset({"stream"})
    limit: int = 65536
    flush_timeout: float | None = 10.0

    loop_connection: LoopConnection | None = None
    """The connection, if a layer has had the event loop shake hands on it. See `socketkit.seams.TakesLoopConnections`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @cached_property
    def peer_certificate(self) -> Any:
        """The client's certificate, as `ssl.SSLObject.getpeercert` returns it; None without one, or without TLS."""
        return self.writer.get_extra_info("peercert") or None

    async def setup(self) -> None:
        """Open `reader` and `writer` on the connection."""
        from socketkit.handlers import _streams  # noqa: PLC0415 - imports asyncio

        if self.loop_connection is not None:
            self.reader, self.writer = _streams.take_over(self.loop_connection, self.limit)
        elif type(self.request) is socket.socket:
            self.reader, self.writer = await _streams.open_streams(self.request, self.limit)
        else:
            kind = type(self.request).__name__
            raise IncompatibleError(type(self).__name__, f"cannot read from a {kind}", "serve it on a transport of plain connections")
        self.writer.write_stall = self._limit("write_stall")

    async def upgrade_tls(self, context: ssl.SSLContext | None = None) -> None:
        """Encrypt the connection from now on, as for STARTTLS. `reader` and `writer` are new objects afterwards.

        Call it right after writing the reply that invites the client to shake hands, with nothing but `drain` in between. What the
        client has sent in clear before is refused, because an attacker may have injected it. `Limits.handshake` bounds the
        handshake.

        context: the server's `ssl.SSLContext`. None: the certificate of the transport's layer `TLS(..., upgrade=True)`.
        Raises: UpgradeError if the connection is over, because the handshake failed or took too long. A handler need not catch it.
            IncompatibleError without a context if the transport has no such layer. RuntimeError if there is TLS already.
        """
        from socketkit._system.loop_connections import LoopConnection  # noqa: PLC0415 - imports asyncio
        from socketkit.handlers._streams import upgrade  # noqa: PLC0415 - as above
        from socketkit.handlers.upgrade import no_certificate  # noqa: PLC0415 - imports ssl

        if context is None:
            layer = self.server._layer_to_upgrade(self.request)  # noqa: SLF001 - it is for handlers
            if layer is None:
                raise no_certificate(type(self).__name__)
            begin = layer.begin_in_loop
        else:
            begin = partial(LoopConnection.encrypt, context=context)
        try:
            self.reader, self.writer = await upgrade(self.request, self.reader, self.writer, begin, self.limit, self._limit("handshake"))
        except OSError as error:
            log.debug("%s: the upgrade to TLS ended the connection: %s", self.client_address, error)
            self.server._fail_upgrade(self.request, error)  # noqa: SLF001 - as above
            raise UpgradeError(str(error)) from error
        self.writer.write_stall = self._limit("write_stall")
        vars(self).pop("peer_certificate", None)  # it may have one now

    def _limit(self, name: str) -> float | None:
        limits = getattr(self.server, "limits", None)  # classic servers have none
        return getattr(limits, name, None)

    async def finish(self) -> None:
        """Send the rest of the reply and close `writer`. A client that has disconnected is not an error.

        Raises: TimeoutError if the client reads nothing of the rest for `flush_timeout` seconds.
        """
        import asyncio  # noqa: PLC0415 - see above

        from socketkit.handlers._streams import unread, unsent  # noqa: PLC0415 - imports asyncio

        self.writer.close()
        closed: Awaitable[None] = self.writer.wait_closed()
        if unsent(self.writer):
            closed, left = asyncio.ensure_future(closed), unread(self.writer)
            while not (await asyncio.wait((closed,), timeout=self.flush_timeout))[0]:
                before, left = left, unread(self.writer)
                if left >= before:
                    closed.cancel()
                    raise TimeoutError(f"the peer has read nothing of the rest of the reply for {self.flush_timeout} s")
        with contextlib.suppress(OSError):  # for example, the client reset the connection before the last bytes were sent
            await closed

    def leave_loop(self) -> None:
        """Have the event loop drop the descriptor. A reply that the client has not got in full ends with a reset."""
        if not hasattr(self, "writer"):
            return
        from socketkit.handlers._streams import is_cut_off  # noqa: PLC0415 - imports asyncio

        with contextlib.suppress(AttributeError):  # asyncio raises this when it is closed
            cut_off = is_cut_off(self.writer)
            self.writer.transport.abort()
            if cut_off:
                reset(self.request)


class AsyncDatagramRequestHandler(AsyncRequestHandler):
    """Handles a datagram: read it from `packet`, and call `reply` any number of times, or not at all.

    Attributes:
        packet: the datagram.
        socket: the socket that received it, shared by all requests of the listener.
    """

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
        pause = 0.001
        while True:
            try:
                self.socket.sendto(data, DONT_WAIT, self.client_address)
            except BlockingIOError:
                await _writable(self.socket.socket if isinstance(self.socket, ReplySocket) else self.socket, pause)
                pause = min(pause * 2, 0.1)
            else:
                return


# --- waiting to send a datagram ---------------------------------------------------------------------------------------


_waiting: weakref.WeakKeyDictionary[Any, set[asyncio.Future[None]]] = weakref.WeakKeyDictionary()  # by socket


async def _writable(sock: Any, pause: float) -> None:
    """Wait until the socket is writable, and then for `pause` seconds.

    The pause is for Unix sockets, which count as writable even while the receiving peer's queue is full.
    """
    import asyncio  # noqa: PLC0415 - see above

    loop, fileno = asyncio.get_running_loop(), sock.fileno()
    waiting = _waiting.setdefault(sock, set())
    if not waiting:
        loop.add_writer(fileno, _wake_all, waiting)
    future = loop.create_future()
    waiting.add(future)
    try:
        await future
    finally:
        waiting.discard(future)
        if not waiting:
            loop.remove_writer(fileno)
    await asyncio.sleep(pause)


def _wake_all(waiting: set[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
