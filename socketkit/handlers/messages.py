"""A handler for request-and-reply protocols: bytes in, bytes out, without access to the connection.

`MessageHandler.reply` needs only a message and the peer's address, so it can run in another process. A dispatcher such as `executor`
sends these two there, and writes the reply itself: see `socketkit.seams.messages`.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import attrs

from socketkit.errors import SocketkitError
from socketkit.handlers.conversation import ConversationHandler
from socketkit.seams import Address
from socketkit.seams.messages import reply_of

PREFIX = 4
"""Bytes of the big-endian length before each message, with the framing "length"."""


@attrs.define
class MessageTooLargeError(SocketkitError, ValueError):
    """A client sent a message of more than `max_message` bytes; its connection is closed."""

    limit: int

    def __str__(self) -> str:
        return f"message too large: it has more than {self.limit} bytes"


class MessageHandler(ConversationHandler):
    """Answers messages: override `reply`. A connection carries many messages, a datagram one.

    Under a dispatcher that parks (pool, adaptive, executor), a connection holds no thread between two messages or while a message
    is incomplete. At most `max_message` bytes of a message are kept, besides the buffer of `rfile`. Do not disable that buffer
    with `rbufsize`. A client that disconnects in the middle of a message aborts its request.

    Attributes:
        framing: how messages are separated on a connection. "line": each message ends with a newline, which `reply` neither gets
            nor returns; a carriage return is part of the message. "length": four bytes before each message give its number of
            bytes, big-endian. Replies are framed in the same way. A datagram is one message, without framing.
        max_message: bytes of the largest message; a larger one raises `MessageTooLargeError` and ends the connection.
    """

    replies_to_messages: ClassVar[bool] = True
    request_kinds: ClassVar[frozenset[str]] = frozenset({"stream", "datagram"})
    framing: ClassVar[Literal["line", "length"]] = "line"
    max_message: int = 65536

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.framing not in _FRAMINGS:
            raise TypeError(f"{cls.__name__}.framing must be {' or '.join(map(repr, _FRAMINGS))}, not {cls.framing!r}")

    def reply(self, message: bytes, client_address: Address) -> bytes | None:  # noqa: ARG002 - subclasses use them
        """Return the reply to a message; None: send no reply. Subclasses define this.

        In an executor's process, `self` has only the attributes of its class: neither `request` nor `server` is there.
        """
        raise TypeError(f"{type(self).__name__} must define reply(message, client_address)")

    def setup(self) -> None:
        """Open the files of a connection. A datagram has none."""
        self._is_datagram = isinstance(self.request, tuple)
        if not self._is_datagram:
            super().setup()
            self._frames = _FRAMINGS[self.framing](self.max_message)

    def finish(self) -> None:
        """Close the files of a connection."""
        if not self._is_datagram:
            super().finish()

    @property
    def is_within_request(self) -> bool:  # type: ignore[override]  # read-only
        """Whether a message has been read only in part."""
        return not self._is_datagram and self._frames.is_within_message

    def another_request(self) -> bool:
        """Wait for more bytes; return False if the client has closed its side. Raises: ConnectionError if it did so within a message."""
        if self._is_datagram or super().another_request():
            return True
        if self.is_within_request:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the peer disconnected in the middle of a message")
        return False

    def handle_one_request(self) -> None:
        """Read the available bytes, and answer the message if they complete one."""
        if self._is_datagram:
            self.close_connection = True
            self._answer_datagram(*self.request)
            return
        message = self._frames.read(self.rfile)
        if message is not None:
            reply = reply_of(self, message)
            if reply is not None:
                self.wfile.write(self._frames.encode(reply))

    def _answer_datagram(self, packet: bytes, sock: Any) -> None:
        if len(packet) > self.max_message:
            raise MessageTooLargeError(self.max_message)
        reply = reply_of(self, packet)
        if reply is None:
            return
        if not self.client_address:
            raise OSError(errno.EDESTADDRREQ, "the sender has no address to reply to")
        sock.sendto(reply, self.client_address)


# --- framings --------------------------------------------------------------------------------------------------------


class _Framing(ABC):
    """Splits a stream of bytes into messages, and keeps the part of an incomplete message that was read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial = bytearray()

    @property
    def is_within_message(self) -> bool:
        return bool(self._partial)

    @abstractmethod
    def read(self, rfile: Any) -> bytes | None:
        """Read at most one message from the available bytes; None if it is still incomplete. Raises: MessageTooLargeError."""

    @abstractmethod
    def encode(self, message: bytes) -> bytes:
        """Return the message with its framing."""

    def _take_all(self) -> bytes:
        whole = bytes(self._partial)
        self._partial.clear()
        return whole


class _Lines(_Framing):
    def read(self, rfile: Any) -> bytes | None:
        data = rfile.peek(1)
        end = data.find(b"\n")
        length = len(data) if end == -1 else end
        if len(self._partial) + length > self._limit:
            raise MessageTooLargeError(self._limit)
        self._partial += data[:length]
        rfile.read1(length if end == -1 else end + 1)
        return None if end == -1 else self._take_all()

    def encode(self, message: bytes) -> bytes:
        return message + b"\n"


class _Lengths(_Framing):
    _length: int | None = None  # of the message, once its prefix has been read

    @property
    def is_within_message(self) -> bool:
        return bool(self._partial) or self._length is not None

    def read(self, rfile: Any) -> bytes | None:
        data = rfile.peek(1)
        used = 0
        if self._length is None:
            used = self._keep(data, PREFIX)
            if len(self._partial) == PREFIX:
                self._length = int.from_bytes(self._take_all(), "big")
        if self._length is not None:
            if self._length > self._limit:
                raise MessageTooLargeError(self._limit)
            used += self._keep(data[used:], self._length)
        rfile.read1(used)
        if len(self._partial) != self._length:
            return None
        self._length = None
        return self._take_all()

    def encode(self, message: bytes) -> bytes:
        return len(message).to_bytes(PREFIX, "big") + message

    def _keep(self, data: bytes, wanted: int) -> int:
        """Move bytes from the start of `data` to the partial message, up to `wanted` bytes in all; return how many."""
        part = data[: wanted - len(self._partial)]
        self._partial += part
        return len(part)


_FRAMINGS: dict[str, type[_Framing]] = {"line": _Lines, "length": _Lengths}
