"""The files of a connection: `rfile` and `wfile`."""

from __future__ import annotations

import socket
from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, BufferedReader, RawIOBase

from socketkit._system.sockets import discard_unread

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any


class SocketWriter(BufferedIOBase):
    """Unbuffered, writable file of a socket: each write returns once all its bytes are sent. Does not own the socket."""

    def __init__(self, sock: Any) -> None:
        self._sock: socket.socket = sock

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Send all bytes of `data` and return their number. Raises: OSError."""
        self._sock.sendall(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()


class SocketInput(RawIOBase):
    """Raw, readable file of a socket, below an `rfile`. Reads as `socket.SocketIO` does. Does not own the socket.

    Attributes:
        looking: set it to true to stop reads from the socket while the buffer above is inspected.
        may_have_more: whether the client has probably sent more than was read: nothing was read yet, or the last read filled its
            buffer.
    """

    mode = "rb"

    def __init__(self, sock: Any) -> None:
        self._sock: socket.socket = sock
        self._timed_out = False
        self.looking = False
        self.may_have_more = True

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read once and return the number of bytes; None if a non-blocking socket has none. Raises: OSError.

        After a timeout every call raises OSError, because it is unknown how much of the requested data was read by then.
        """
        if self.looking:
            return None
        if self._timed_out:
            raise OSError("cannot read from timed out object")
        try:
            count = self._sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except TimeoutError:
            self._timed_out = True
            raise
        self.may_have_more = count == len(buffer)
        return count

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    @property
    def name(self) -> int:
        """The socket's descriptor, in place of a file name."""
        return self.fileno()


class WatchedInput(socket.SocketIO):
    """What `socket.makefile` returns, with the attributes of `SocketInput`. Changes the class of an existing object, and nothing else."""

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
    """Buffered, readable file of a socket: a line that is read without a size may have at most `max_line` bytes."""

    __slots__ = ("max_line",)

    max_line: int

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line, or at most its first `size` bytes. Raises: LineTooLongError (without a size); OSError."""
        if size is not None and size >= 0:
            return _readline(self, size)
        line = _readline(self, self.max_line + 1)
        if len(line) > self.max_line:
            from socketkit.errors import LineTooLongError  # noqa: PLC0415 - classic servers have no such limit

            raise LineTooLongError(self.max_line)
        return line


def open_reader(connection: Any, size: int, max_line: int | None) -> Any:
    """Return a readable file for a connection; `size` is its buffer, as for `socket.makefile`. Unbuffered, lines have no bound."""
    if max_line is None or size == 0:
        return connection.makefile("rb", size)
    raw = SocketInput(connection) if isinstance(connection, socket.socket) else connection.makefile("rb", 0)
    if not isinstance(raw, RawIOBase):
        return raw  # other kinds of connection have their own files
    reader = SocketReader(raw, DEFAULT_BUFFER_SIZE if size < 0 else size)
    reader.max_line = max_line
    return reader


def input_of(rfile: Any) -> SocketInput | WatchedInput | None:
    """Return the raw file below an `rfile`, or `rfile` itself if it has no buffer; None for a file of another kind."""
    raw: Any = rfile.raw if isinstance(rfile, BufferedReader) else rfile
    if type(raw) is socket.SocketIO:
        raw.__class__ = WatchedInput
    return raw if isinstance(raw, SocketInput | WatchedInput) else None


def has_buffered(rfile: Any, raw: SocketInput | WatchedInput) -> bool:
    """Return whether bytes that were read from the connection wait in the buffer of `rfile`, above `raw`. Reads nothing."""
    if raw is rfile:
        return False
    raw.looking = True
    try:
        return bool(rfile.peek(1))
    finally:
        raw.looking = False


def discard_rest(handler: Any) -> None:
    """Discard what the client has probably sent and the handler has not read, so that the close does not destroy the reply."""
    raw: Any = getattr(getattr(handler, "rfile", None), "raw", None)
    if getattr(raw, "may_have_more", False):
        raw.may_have_more = False
        discard_unread(handler.connection)
