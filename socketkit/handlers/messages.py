"""A handler for request-and-reply protocols: bytes in, bytes out, without access to the connection.

`MessageHandler.reply` needs only a message and the peer's address, so it can run in another process. The executor dispatcher sends
these two there, and writes the reply itself.
"""

from __future__ import annotations

import contextlib
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from socketkit.errors import SocketkitError
from socketkit.handlers.conversation import ConversationHandler
from socketkit.seams import Address

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
            reply = self._reply_to(message)
            if reply is not None:
                self.wfile.write(self._frames.encode(reply))

    def _answer_datagram(self, packet: bytes, sock: Any) -> None:
        if len(packet) > self.max_message:
            raise MessageTooLargeError(self.max_message)
        reply = self._reply_to(packet)
        if reply is None:
            return
        if not self.client_address:
            raise OSError(errno.EDESTADDRREQ, "the sender has no address to reply to")
        sock.sendto(reply, self.client_address)

    def _reply_to(self, message: bytes) -> bytes | None:
        elsewhere = _answer.get()
        if elsewhere is None:
            return _checked(type(self), self.reply(message, self.client_address))
        return elsewhere(type(self), message, self.client_address)


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


# --- replies from elsewhere ------------------------------------------------------------------------------------------

Answer: TypeAlias = Callable[[type[MessageHandler], bytes, Address], bytes | None]
"""Returns the reply to a message in place of the handler's `reply`."""

_answer: ContextVar[Answer | None] = ContextVar("_answer", default=None)


@contextlib.contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Use `answer` to get the reply to every message handled inside this block."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


def answer(handler: type[MessageHandler], message: bytes, client_address: Address) -> bytes | None:
    """Return the reply of a handler of this class; an `Answer` that any process can run.

    Raises: whatever `reply` raises, or a RuntimeError that describes it if pickle cannot carry it to another process.
    """
    try:
        return _checked(handler, object.__new__(handler).reply(message, client_address))
    except BaseException as error:
        import pickle  # noqa: PLC0415 - most programs never need it

        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - it was made in this process
        except Exception:  # noqa: BLE001 - an error's own methods may raise anything
            raise RuntimeError(_told(error)) from None
        raise


def _checked(handler: type[MessageHandler], reply: Any) -> bytes | None:
    if reply is None or type(reply) is bytes:
        return reply
    if isinstance(reply, bytes | bytearray | memoryview):
        return bytes(reply)
    raise TypeError(f"{handler.__name__}.reply must return bytes or None, not {type(reply).__name__}")


def _told(error: BaseException) -> str:
    with contextlib.suppress(Exception):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__
