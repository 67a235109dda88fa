"""The streams of asynchronous handlers, with and without TLS. Imports asyncio, so only handlers that run import it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from socketkit._system.loop_connections import LoopConnection, open_transport
from socketkit.errors import StalledError

Data: TypeAlias = bytes | bytearray | memoryview

PIECE = 1 << 16
"""Bytes that an encrypted stream is given at once. It passes a single write on as a whole, however long, and `drain` would not wait."""

NO_LIMIT = (1 << 31) - 1
"""The highest limit that a write buffer of uvloop can have, in bytes."""


class Writer(asyncio.StreamWriter):
    """A stream writer whose `drain` does not wait forever for a client that reads nothing.

    Attributes:
        write_stall: the seconds that the client may read nothing; None: no limit.
        is_cut: whether the connection was aborted, so that the client must not take the reply for complete.
    """

    write_stall: float | None = None
    is_cut = False

    async def drain(self) -> None:
        """As `asyncio.StreamWriter.drain`. Raises: StalledError when the client reads nothing for `write_stall` seconds."""
        left = self.transport.get_write_buffer_size()  # asyncio does not wait below the low-water mark
        if self.write_stall is None or left <= self.transport.get_write_buffer_limits()[0]:
            await super().drain()
            return
        left = unread(self)
        while True:
            try:
                async with asyncio.timeout(self.write_stall):
                    await super().drain()
            except TimeoutError:
                before, left = left, unread(self)
                if left >= before:
                    self.cut()
                    raise StalledError(self.write_stall) from None
            else:
                return

    def cut(self) -> None:
        """Abort the connection: closing it would wait for the rest to be sent."""
        self.is_cut = True
        self.transport.abort()

    def follow(self, transport: asyncio.Transport, protocol: asyncio.StreamReaderProtocol) -> None:
        """Write to another transport of the same connection from now on."""
        self._transport, self._protocol = transport, protocol


class EncryptedProtocol(asyncio.StreamReaderProtocol):
    """The protocol of a connection with TLS.

    has_ended: whether the client has ended its side. An event loop then ends the other one too, and sends nothing more.
    """

    has_ended = False

    def eof_received(self) -> bool:
        self.has_ended = True
        super().eof_received()
        return False


class EncryptedWriter(Writer):
    """A writer to a connection with TLS.

    former: the writer from before TLS, if any. Code that has kept it writes to the encrypted transport too. It is kept until the
        end, because a writer that is deleted closes its transport.
    """

    def __init__(
        self,
        connection: LoopConnection,
        protocol: EncryptedProtocol,
        reader: asyncio.StreamReader,
        former: Writer | None = None,
    ) -> None:
        super().__init__(connection.transport, protocol, reader, asyncio.get_running_loop())
        self._connection = connection
        self._ends = protocol
        self._former = former
        self._is_ending = False
        if former is not None:
            former.follow(connection.transport, protocol)

    def write(self, data: Data) -> None:
        """As `asyncio.StreamWriter.write`. Once the connection has ended it does nothing, where asyncio logs a warning each time."""
        rest = memoryview(data).cast("B")
        while rest and not self._has_ended():
            super().write(bytes(rest[:PIECE]))
            rest = rest[PIECE:]

    def _has_ended(self) -> bool:
        return self._ends.has_ended or self.transport.is_closing() or self._connection.below.is_closing()

    def writelines(self, data: Iterable[Data]) -> None:
        """As `asyncio.StreamWriter.writelines`."""
        for each in data:
            self.write(each)

    def close(self) -> None:
        """Close the connection after sending what is left, and then `close_notify`. A task that is being cancelled cuts it off instead."""
        task = asyncio.current_task()
        if self._is_ending or self.transport.is_closing():
            return
        if task is not None and task.cancelling():
            self.cut()
            return
        self._is_ending = True
        # The transport below takes nothing more once it is closed, so it has to take everything before, `close_notify` included.
        self._connection.below.set_write_buffer_limits(high=NO_LIMIT)
        if not self.transport.get_write_buffer_size():
            self._say_goodbye()

    async def wait_closed(self) -> None:
        """Wait until all is sent, but not for the client's `close_notify`, which few clients send."""
        if self._is_ending and not self.transport.is_closing():
            self.transport.set_write_buffer_limits(high=1)  # so that `drain` waits until the one below has everything
            await asyncio.StreamWriter.drain(self)
            self._say_goodbye()
        await super().wait_closed()

    @property
    def unsent_below(self) -> int:
        """The bytes that are encrypted, but not sent."""
        return self._connection.below.get_write_buffer_size()

    def _say_goodbye(self) -> None:
        self._connection.transport.resume_reading()  # OpenSSL sends no `close_notify` while there is something to read
        self.transport.close()
        self._connection.below.close()


async def open_streams(request: Any, limit: int) -> tuple[asyncio.StreamReader, Writer]:
    """Return the streams of a socket."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    return reader, Writer(await open_transport(request, protocol), protocol, reader, loop)


def take_over(connection: LoopConnection, limit: int, former: Writer | None = None) -> tuple[asyncio.StreamReader, EncryptedWriter]:
    """Return the streams of a connection on which TLS has shaken hands. former: see `EncryptedWriter`."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit, loop)
    protocol = EncryptedProtocol(reader, loop=loop)
    writer = EncryptedWriter(connection, protocol, reader, former)
    connection.hand_over(protocol)
    return reader, writer


async def upgrade(  # noqa: PLR0913, PLR0917 - the state of a handler
    request: Any,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    begin: Callable[[LoopConnection], Awaitable[None]],
    limit: int,
    seconds: float | None,
) -> tuple[asyncio.StreamReader, EncryptedWriter]:
    """Return the streams of a connection with TLS, given those in clear.

    begin: shakes hands. seconds: the most that the client may take; None: no limit.
    Raises: OSError. `writer` is closed then.
    """
    if type(writer) is not Writer:
        raise RuntimeError("only a connection in clear can be upgraded, and only once")
    below: Any = writer.transport
    in_clear = below.get_protocol()
    below.pause_reading()
    try:
        async with asyncio.timeout(seconds) as limited:
            await _refuse_clear_text(reader)
            await writer.drain()
            connection = LoopConnection(request)
            connection.connection_made(below)
            await begin(connection)
    except BaseException:
        below.abort()
        in_clear.connection_lost(None)  # the loop has another protocol to tell
        if limited.expired():
            raise TimeoutError(f"tls: the handshake was not over within {seconds:g} s") from None
        raise
    return take_over(connection, limit, writer)


async def _refuse_clear_text(reader: asyncio.StreamReader) -> None:
    """Refuse what the client has sent before its handshake: somebody between may have put it in. Source: CVE-2011-0411."""
    if reader.at_eof():
        raise ConnectionAbortedError("tls: the client closed the connection")
    reader.feed_eof()  # so that `read` does not wait
    if await reader.read(1):
        raise OSError("tls: the client has sent more than its request for TLS in clear")


# --- what has not reached the client ---------------------------------------------------------------------------------


def unsent(writer: asyncio.StreamWriter) -> int:
    """Return how many bytes the kernel has yet to take."""
    return writer.transport.get_write_buffer_size() + (writer.unsent_below if isinstance(writer, EncryptedWriter) else 0)


def is_cut_off(writer: asyncio.StreamWriter) -> bool:
    """Return whether a part of the reply was not sent."""
    return getattr(writer, "is_cut", False) or unsent(writer) > 0


def unread(writer: asyncio.StreamWriter) -> int:
    """Return how many bytes the client has yet to read, the kernel's included: the kernel makes room only after many are read."""
    sock = writer.get_extra_info("socket")  # of uvloop: None once it is closed
    return unsent(writer) + (0 if sock is None else _queued_by_kernel(sock.fileno()))


def _queued_by_kernel(fileno: int) -> int:
    """Return how many sent bytes are still in the kernel's queue; 0 where the system does not say. Source: tcp(7), SIOCOUTQ."""
    try:
        from fcntl import ioctl  # noqa: PLC0415 - not on every platform
        from termios import TIOCOUTQ  # noqa: PLC0415 - the same number as SIOCOUTQ

        return int.from_bytes(ioctl(fileno, TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError, ValueError):  # ValueError: it is closed
        return 0
