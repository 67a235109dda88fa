"""A client's connection as a stream of trio, with TLS or without."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import sys
import termios
from typing import NoReturn

import trio

from socketkit.errors import StalledError

RECEIVE_SIZE = 65536
"""Most bytes that `receive_some` returns if it is not told how many."""

MOST_DISCARDED = 1 << 20
"""Most unread bytes that are discarded before a connection is closed. A client that sends more may be reset."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time


class ConnectionLostError(trio.BrokenResourceError, ConnectionResetError):
    """The client has gone. A handler need not catch it: the request counts as aborted, and nothing is logged above DEBUG."""


class RequestStream(trio.abc.HalfCloseableStream):
    """A client's connection. Its methods are those of `trio.abc.HalfCloseableStream`; it works on the socket that the server closes.

    One task may send and another one receive at the same time. After a `send_all` that was cancelled or failed, nobody knows how much of
    its data was sent, so the connection is reset in the end: the client must not take the reply for complete.

    socket: connected; a plain one, or an `ssl.SSLSocket` whose handshake is over. It does not block from now on.
    write_stall: seconds that the client may read nothing while `send_all` waits for it; None: no limit.
    """

    def __init__(self, sock: socket.socket, write_stall: float | None = None) -> None:
        sock.settimeout(0)
        if sock.family in _INTERNET:
            with contextlib.suppress(OSError):  # the client has gone
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.socket = sock
        self._write_stall = write_stall
        self._is_sending = False
        self._is_cut_off = False  # the end of what was sent last is missing
        self._may_have_more = True  # the client may have sent what nobody has received

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at least one byte and at most `max_bytes` (None: 65536); nothing if the client has ended its side.

        Raises: ConnectionLostError; trio.BrokenResourceError for what is no valid TLS; trio.ClosedResourceError.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        size = max_bytes or RECEIVE_SIZE
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            data = self.socket.recv(size)
        except _WOULD_BLOCK as error:
            data = await self._receive_later(size, sends=isinstance(error, ssl.SSLWantWriteError))
        except OSError as error:
            self._fail(error)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._may_have_more = len(data) == size
        return data

    async def _receive_later(self, size: int, *, sends: bool) -> bytes:
        """Wait for the client, and receive. sends: TLS has to send first, for example to answer a change of keys."""
        while True:
            await (trio.lowlevel.wait_writable if sends else trio.lowlevel.wait_readable)(self.socket)
            try:
                return self.socket.recv(size)
            except _WOULD_BLOCK as error:
                sends = isinstance(error, ssl.SSLWantWriteError)
            except OSError as error:
                self._fail(error)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all the data.

        Raises: ConnectionLostError; socketkit.errors.StalledError; trio.BusyResourceError if another task sends; trio.ClosedResourceError.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            with memoryview(data) as view, view.cast("B") as rest:
                has_waited = await self._send(rest)
            if not has_waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._is_sending = False

    async def _send(self, rest: memoryview) -> bool:
        """Send all; return whether that took a wait."""
        sent, has_waited = 0, False
        self._is_cut_off = True
        while sent < len(rest):
            try:
                sent += self.socket.send(rest[sent:])
            except ssl.SSLWantReadError:
                has_waited = True
                await trio.lowlevel.wait_readable(self.socket)
            except (BlockingIOError, ssl.SSLWantWriteError):
                has_waited = True
                await self._until_writable()
            except OSError as error:
                self._fail(error)
            else:
                if sent < len(rest):  # a client that reads as fast as this sends must not keep other tasks from running
                    has_waited = True
                    await trio.lowlevel.checkpoint()
        self._is_cut_off = False
        return has_waited

    async def _until_writable(self) -> None:
        """Wait until the socket takes more. Raises: StalledError."""
        if self._write_stall is None:
            await trio.lowlevel.wait_writable(self.socket)
            return
        left = _unread(self.socket)
        while True:
            with trio.move_on_after(self._write_stall) as limited:
                await trio.lowlevel.wait_writable(self.socket)
            if not limited.cancelled_caught:
                return
            before, left = left, _unread(self.socket)
            if left >= before:  # the kernel reports a socket as writable only once a third of its buffer is free
                raise StalledError(self._write_stall)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes more data. Raises: trio.BusyResourceError if another task sends; trio.ClosedResourceError."""
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this connection is closed")
        self._is_sending = True
        try:
            await trio.lowlevel.wait_writable(self.socket)
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """Tell the client that nothing more will be sent. It can still be received from.

        Raises: RuntimeError with TLS, which ends in both directions at once; otherwise as `send_all`.
        """
        if isinstance(self.socket, ssl.SSLSocket):
            reason = "a connection with TLS cannot be closed in one direction; return from the handler, or call aclose()"
            raise RuntimeError(reason)  # noqa: TRY004 - the documented exception
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        await trio.lowlevel.checkpoint()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)

    async def aclose(self) -> None:
        """Close the connection now. A handler need not call this: the server closes the connection after the handler."""
        self.leave_loop()
        with contextlib.suppress(OSError):  # the client has gone, or it is closed
            self.socket.shutdown(socket.SHUT_WR)
        self.socket.close()
        await trio.lowlevel.checkpoint()

    def leave_loop(self) -> None:
        """Have the event loop drop the connection, so that the server can close it. A reply that was cut off ends with a reset.

        Otherwise bytes that have arrived and that nobody has received are discarded: closing would reset the connection because of them, and
        the client might lose the end of its reply. Source: RFC 1122, 4.2.2.13; socket(7), SO_LINGER.
        """
        sock = self.socket
        if sock.fileno() == -1:
            return
        trio.lowlevel.notify_closing(sock)
        with contextlib.suppress(OSError):  # the client has gone
            if self._is_cut_off:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
            elif self._may_have_more or isinstance(sock, ssl.SSLSocket):
                _discard_unread(sock)

    def _fail(self, error: OSError) -> NoReturn:
        """Raise what trio's interface says, because of `error`, the exception being handled."""
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this connection is closed") from None
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            raise trio.BrokenResourceError(str(error)) from error
        raise ConnectionLostError(*error.args) from error


def _unread(sock: socket.socket) -> int:
    """Return how many sent bytes the client has not received yet; 0 where the system does not say. Source: tcp(7), SIOCOUTQ."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)  # the same number as SIOCOUTQ
    except OSError:
        return 0


def _discard_unread(sock: socket.socket) -> None:
    """Read and discard what has arrived, encrypted or not. Never blocks. Raises: OSError once nothing is left."""
    scratch, left = bytearray(RECEIVE_SIZE), MOST_DISCARDED
    while left > 0 and (size := socket.socket.recv_into(sock, scratch, 0, socket.MSG_DONTWAIT)):
        left -= size
