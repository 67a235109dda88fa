"""Request handlers: plain blocking classes, one instance for each request.

Their behaviour is that of CPython's Lib/socketserver.py, down to the attributes that programs replace while they run.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from functools import partial
from io import BytesIO
from typing import Any, ClassVar

from socketkit.handlers.files import SocketWriter, discard_rest, open_reader
from socketkit.seams import Address, Request


def unwrapped(handler: Any) -> Any:
    """Return what a `functools.partial` calls, and anything else as it is: whose attributes say what a handler can do."""
    return handler.func if isinstance(handler, partial) else handler


class BaseRequestHandler:
    """Handles one request: its constructor calls `setup`, `handle` and `finish`, in this order.

    `finish` is called whatever `handle` does, but not if `setup` raises. Override any of the three.

    Attributes:
        request: the connected socket (stream), or (data, socket) (datagram).
        client_address: the peer, as the transport calls it.
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
        finally:
            self.finish()

    def setup(self) -> None:
        """Prepare; does nothing here."""

    def handle(self) -> None:
        """Do all the work that the request asks for; does nothing here."""

    def finish(self) -> None:
        """Clean up; does nothing here."""


def _close_files(handler: Any) -> None:
    """Close what a `setup` that then failed has opened: `finish` will not be called, and an open file keeps a closed socket alive."""
    for name in ("wfile", "rfile"):
        with contextlib.suppress(Exception):
            getattr(handler, name).close()


class StreamRequestHandler(BaseRequestHandler):
    """Handles a connection through two files: `rfile` to read the request, `wfile` to write the reply.

    The class attributes take effect in `setup`, which may be called again after `request` was replaced (as STARTTLS does).

    Attributes:
        rbufsize: buffer of `rfile` in bytes; -1: the default size, 0: none.
        wbufsize: buffer of `wfile` in bytes; 0: none, each write is sent at once; otherwise call `flush`.
        timeout: seconds for each single operation on the connection; None: no limit.
        disable_nagle_algorithm: set TCP_NODELAY on the connection.
    """

    request_kinds: ClassVar[frozenset[str]] = frozenset({"stream"})
    """What a composed server may bring it; a handler that also takes datagrams says so here."""

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
        limits = getattr(self.server, "limits", None)  # which classic servers do not have
        self.rfile = open_reader(self.connection, self.rbufsize, getattr(limits, "line", None))
        if self.wbufsize == 0:
            self.wfile = getattr(type(self.server), "_make_writer", SocketWriter)(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def finish(self) -> None:
        """Flush and close both files. Legal when they are closed already; a peer that is gone is no error."""
        if not self.wfile.closed:
            with contextlib.suppress(OSError):  # such as a reset by the peer, before the last bytes were out
                self.wfile.flush()
        discard_rest(self)
        try:
            self.wfile.close()
        finally:
            self.rfile.close()


class DatagramRequestHandler(BaseRequestHandler):
    """Handles a datagram through two files in memory: `rfile` holds what came, and `finish` sends what `wfile` holds.

    Attributes:
        packet: the datagram.
        socket: the socket it came from, and on which the reply goes out.
    """

    request_kinds: ClassVar[frozenset[str]] = frozenset({"datagram"})

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
        """Send the reply. If nothing was written, the classic servers send an empty datagram, and composed ones nothing.

        A sender without an address gets none.

        Raises: OSError (EDESTADDRREQ) if there is a reply and nowhere to send it, as for a Unix socket that was never bound.
        """
        reply = self.wfile.getvalue()
        if not reply and not getattr(self.server, "sends_empty_replies", True):
            return
        if self.client_address:
            self.socket.sendto(reply, self.client_address)
        elif reply:
            raise OSError(errno.EDESTADDRREQ, "the sender has no address to reply to")
