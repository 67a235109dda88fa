"""Request handlers: plain blocking classes, one instance for each request.

Their behaviour is that of CPython's Lib/socketserver.py, down to the attributes that programs replace while they run.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from functools import partial
from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, BufferedReader, BytesIO, RawIOBase
from typing import Any, ClassVar

from socketkit.errors import LineTooLongError
from socketkit.lingering import discard_unread
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


class SocketWriter(BufferedIOBase):
    """The unbuffered, writable file of a socket: each write is sent whole before it returns. Does not own the socket."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Send all the bytes; return how many they are. Raises: OSError."""
        self._sock.sendall(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        number: int = self._sock.fileno()
        return number


class SocketInput(RawIOBase):
    """The raw, readable file of a socket, under an `rfile`. Does not own the socket. Reads as `socket.SocketIO` does.

    Attributes:
        looking: set it to have nothing read, while somebody looks into the buffer above.
        may_have_more: whether the peer is likely to have sent what was not read: nothing was, or all that there was room for.
    """

    mode = "rb"

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._timed_out = False
        self.looking = False
        self.may_have_more = True

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read once; return how many bytes came, None if none is there and the socket does not wait. Raises: OSError.

        After a timeout it raises OSError each time: nobody knows how much of what was asked for has come by then.
        """
        if self.looking:
            return None
        if self._timed_out:
            raise OSError("cannot read from timed out object")
        try:
            count: int = self._sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except TimeoutError:
            self._timed_out = True
            raise
        self.may_have_more = count == len(buffer)
        return count

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        number: int = self._sock.fileno()
        return number

    @property
    def name(self) -> int:
        """The socket's descriptor, as other files say what they are of."""
        return self.fileno()


class WatchedInput(socket.SocketIO):
    """What `socket.makefile` gives, made to tell the same as a `SocketInput`: only its class is another one."""

    looking = False
    may_have_more = True

    def readinto(self, buffer: Any) -> int | None:
        """As `socket.SocketIO.readinto`."""
        if self.looking:
            return None
        count = super().readinto(buffer)
        self.may_have_more = count == len(buffer)
        return count


_readline = BufferedReader.readline


class SocketReader(BufferedReader):
    """The buffered, readable file of a socket, with a bound for lines: who does not say how many bytes a line may have gets no more."""

    __slots__ = ("max_line",)

    max_line: int

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line, or its first `size` bytes. Raises: LineTooLongError; OSError."""
        if size is not None and size >= 0:
            return _readline(self, size)
        line = _readline(self, self.max_line + 1)
        if len(line) > self.max_line:
            raise LineTooLongError(self.max_line)
        return line


def open_reader(connection: Any, size: int, max_line: int | None) -> Any:
    """Return the readable file of a connection; size: of its buffer, as for `socket.makefile`. Without a buffer lines have no bound."""
    if max_line is None or size == 0:
        return connection.makefile("rb", size)
    raw = SocketInput(connection) if isinstance(connection, socket.socket) else connection.makefile("rb", 0)
    if not isinstance(raw, RawIOBase):
        return raw  # a connection of another kind has files of its own
    reader = SocketReader(raw, DEFAULT_BUFFER_SIZE if size < 0 else size)
    reader.max_line = max_line
    return reader


def discard_rest(handler: Any) -> None:
    """Throw away what the handler's client is likely to have sent beyond what was read, so that closing destroys no reply."""
    raw: Any = getattr(getattr(handler, "rfile", None), "raw", None)
    if getattr(raw, "may_have_more", False):
        raw.may_have_more = False
        discard_unread(handler.connection)


make_writer: Callable[[Any], Any] = SocketWriter
"""What makes an unbuffered `wfile`. `socketkit.socketserver` puts its own global name in between, which programs replace."""


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
            self.wfile = make_writer(self.connection)
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


class ConversationHandler(StreamRequestHandler):
    """Handles a connection request by request: override `handle_one_request`.

    Under a dispatcher that parks (pool, adaptive) the connection holds no thread between two requests, and different requests of
    one connection may run in different threads, one at a time. Under any other, and under the standard library's classes, `handle`
    loops.

    Attributes:
        close_connection: set it to true in `handle_one_request` to make that request the last.
        is_within_request: for handlers that read a request piece by piece: whether part of one was read when `handle_one_request`
            returns. The time that the server's limits grant a request then goes on. May be a property.
    """

    close_connection: bool = False
    is_within_request: bool = False

    def handle(self) -> None:
        """Handle requests until one was the last, or the peer sends no more."""
        while not self.close_connection and self.another_request():
            self.handle_one_request()

    def another_request(self) -> bool:
        """Wait for the first byte of another request; False if the peer has closed its side. Takes no byte away."""
        peek = getattr(self.rfile, "peek", None)
        return bool(peek(1) if peek is not None else self.connection.recv(1, socket.MSG_PEEK))

    def handle_one_request(self) -> None:
        """Read one request from `rfile`, where its first byte is, and answer it on `wfile`. Subclasses define this."""
        raise TypeError(f"{type(self).__name__} has to define handle_one_request()")


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
