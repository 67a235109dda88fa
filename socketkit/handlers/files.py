"""The files of a connection: `rfile` and `wfile`."""

from __future__ import annotations

import socket
from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, BufferedReader, RawIOBase
from typing import Any

from socketkit._system.sockets import discard_unread
from socketkit.errors import LineTooLongError


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
