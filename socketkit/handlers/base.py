"""Request handlers: plain blocking classes, one instance for each request.

They behave like those of CPython's Lib/socketserver.py, including the attributes that programs replace at run time.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from functools import cached_property, partial
from io import BytesIO

from socketkit.handlers.files import SocketWriter, discard_rest, open_reader

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    import ssl
    from typing import Any, ClassVar

    from socketkit.seams import Address, Request
else:
    Any = object  # for programs that evaluate the annotations of a subclass


def unwrapped(handler: Any) -> Any:
    """Return the callable inside a `functools.partial`, or `handler` itself. Its attributes declare what the handler supports."""
    return handler.func if isinstance(handler, partial) else handler


def _upgrade_error() -> Any:
    """Return `UpgradeError`; an empty tuple if it is not imported, so that nobody can have raised it."""
    errors = sys.modules.get("socketkit.errors")
    return () if errors is None else errors.UpgradeError


class BaseRequestHandler:
    """Handles one request: the constructor calls `setup`, `handle` and `finish`, in this order.

    `finish` is called even if `handle` raises, but not if `setup` raises. Override any of the three.

    Attributes:
        request: the connected socket (stream), or (data, socket) (datagram).
        client_address: the peer's address, as the transport returns it.
        server: the server that took the request.
    """

    def __init__(self, request: Request, client_address: Address, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        try:
            self.setup()
        except BaseException:
            _close_files(self)
            raise
        try:
            self.handle()
        except _upgrade_error():
            pass  # the connection is over, and the log has the reason
        finally:
            self.finish()

    @cached_property  # and no property, which would keep a program from setting the name
    def peer_certificate(self) -> Any:
        """The client's certificate, as `ssl.SSLSocket.getpeercert` returns it; None without one, or without TLS."""
        certificate = getattr(self.request, "getpeercert", None)
        return None if certificate is None else certificate() or None

    def upgrade_tls(self, context: ssl.SSLContext | None = None) -> None:
        """Encrypt the connection: wait for the client's TLS handshake, then put the encrypted socket in the place of `request`.

        Send the reply that invites the client first (STARTTLS). Whatever the client has sent ahead of its handshake and is in `rfile`
        ends the connection: it came in clear, so it must not count as encrypted, and a client has to wait for the reply anyway. A
        handler that reads from `request` into a buffer of its own has to discard that itself. Source: RFC 3207, 4; CVE-2011-0411.
        The socket and the files of before cannot be used any more. The server closes the encrypted connection, as it would the other;
        under the standard library's servers the handler does, after `finish`.

        context: the server's `ssl.SSLContext`, which makes sockets of socketkit's own class from then on. None: the certificate of the
            transport's layer `TLS(..., upgrade=True)`.
        Raises: UpgradeError if the connection is over, because the handshake failed, took longer than `Limits.handshake` (without
            limits, than the timeout of `request` for one wait), or the connection was encrypted before. A handler need not catch it.
            IncompatibleError without a context if the transport has no such layer. OSError if `wfile` cannot be flushed.
        """
        from socketkit.handlers.upgrade import upgrade  # noqa: PLC0415 - it imports ssl

        self.request = upgrade(self, context)
        vars(self).pop("peer_certificate", None)  # the one of before, which was none

    def setup(self) -> None:
        """Prepare for `handle`. The default does nothing."""

    def handle(self) -> None:
        """Do all the work for the request. The default does nothing."""

    def finish(self) -> None:
        """Clean up after `handle`. The default does nothing."""


def _close_files(handler: Any) -> None:
    """Close the files after `setup` has failed: `finish` is not called, and an open file keeps a closed socket alive."""
    for name in ("wfile", "rfile"):
        with contextlib.suppress(Exception):
            getattr(handler, name).close()


class StreamRequestHandler(BaseRequestHandler):
    """Handles a connection through two files: `rfile` to read the request, `wfile` to write the reply.

    The class attributes take effect in `setup`, which may be called again after `request` is replaced (as for STARTTLS).

    Attributes:
        rbufsize: bytes that `rfile` buffers; -1: the default size; 0: unbuffered.
        wbufsize: bytes that `wfile` buffers; 0: unbuffered, each write is sent at once. With a buffer, call `flush` to send.
        timeout: seconds for each operation on the connection; None: no limit.
        disable_nagle_algorithm: whether to set TCP_NODELAY on the connection.
    """

    if TYPE_CHECKING:
        request_kinds: ClassVar[frozenset[str]]
    request_kinds = frozenset({"stream"})
    """Kinds of request that a composed server may pass to it. A handler that also takes datagrams adds them here."""

    rbufsize: int = -1
    wbufsize: int = 0
    timeout: float | None = None
    disable_nagle_algorithm: bool = False

    connection: Any
    rfile: Any
    wfile: Any

    def setup(self) -> None:
        """Open `rfile` and `wfile` on the connection."""
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        limits = getattr(self.server, "limits", None)  # classic servers have none
        self.rfile = open_reader(self.connection, self.rbufsize, getattr(limits, "line", None))
        if self.wbufsize == 0:
            self.wfile = getattr(type(self.server), "_make_writer", SocketWriter)(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def upgrade_tls(self, context: ssl.SSLContext | None = None) -> None:
        """As `BaseRequestHandler.upgrade_tls`, with new files: `wfile` is flushed before, and `setup` of this class is done again."""
        self.wfile.flush()
        super().upgrade_tls(context)
        StreamRequestHandler.setup(self)  # not that of a subclass, which may greet the client

    def finish(self) -> None:
        """Flush and close both files. They may be closed already. A client that has disconnected is not an error."""
        if not self.wfile.closed:
            with contextlib.suppress(OSError):  # for example, the client reset the connection before the last bytes were sent
                self.wfile.flush()
        discard_rest(self)
        try:
            self.wfile.close()
        finally:
            self.rfile.close()


class DatagramRequestHandler(BaseRequestHandler):
    """Handles a datagram through two files in memory: read it from `rfile`, and write the reply to `wfile`. `finish` sends it.

    Attributes:
        packet: the datagram.
        socket: the socket that received the datagram and sends the reply.
    """

    if TYPE_CHECKING:
        request_kinds: ClassVar[frozenset[str]]
    request_kinds = frozenset({"datagram"})

    packet: bytes
    socket: Any
    rfile: BytesIO
    wfile: BytesIO

    def setup(self) -> None:
        """Open `rfile` and `wfile`."""
        self.packet, self.socket = self.request
        self.rfile = BytesIO(self.packet)
        self.wfile = BytesIO()

    def finish(self) -> None:
        """Send the reply. If nothing was written, a classic server sends an empty datagram, and a composed server sends none.

        A sender without an address, such as an unbound Unix socket, gets no empty datagram.

        Raises: OSError (EDESTADDRREQ) if there is a reply and the sender has no address.
        """
        reply = self.wfile.getvalue()
        if not reply and not getattr(self.server, "sends_empty_replies", True):
            return
        if self.client_address:
            self.socket.sendto(reply, self.client_address)
        elif reply:
            raise OSError(errno.EDESTADDRREQ, "the sender has no address to reply to")
