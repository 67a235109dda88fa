"""Replies computed elsewhere: what a handler that answers messages and a dispatcher that sends them away agree on.

A handler with the trait `socketkit.seams.RepliesToMessages` gets each of its replies by `reply_of`. A dispatcher runs its units inside
`answered_by`, and then gets the messages instead: it may have `answer` run in another process or on another machine. Connections stay
where the unit runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol

from socketkit.seams.powers import RepliesToMessages
from socketkit.seams.types import Address, Request


class Answer(Protocol):
    """Returns the reply to a message in place of the handler's `reply`."""

    def __call__(self, handler: type[RepliesToMessages], message: bytes, client_address: Address, request: Request, /) -> bytes | None:
        """Return the reply; None: send no reply. Called in the thread that runs the unit, which waits for it.

        handler: the class, which other processes import by its name.
        request: the connection, or for a datagram a tuple. It is only for watching whether the client is still there.
        Raises: whatever the request then fails with. A `ConnectionError` means that the client has left.
        """


def replies_to_messages(handler: Any) -> bool:
    """Return whether a handler, without a `functools.partial` around it, has the trait `RepliesToMessages`."""
    return isinstance(handler, type) and bool(getattr(handler, "replies_to_messages", False))


# --- where a unit runs -----------------------------------------------------------------------------------------------

_answer: ContextVar[Answer | None] = ContextVar("_answer", default=None)


@contextlib.contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Use `answer` to get the reply to every message handled inside this block. For dispatchers."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


def reply_of(handler: Any, message: bytes) -> bytes | None:
    """Return the reply of a handler to a message, computed here or elsewhere; None: send no reply. For handlers.

    handler: an instance with the trait `RepliesToMessages`, and with the attributes `client_address` and `request`.
    Raises: whatever `reply` raises, and TypeError if it does not return bytes.
    """
    elsewhere = _answer.get()
    if elsewhere is None:
        return _checked(type(handler), handler.reply(message, handler.client_address))
    return elsewhere(type(handler), message, handler.client_address, handler.request)


# --- where a reply is computed ---------------------------------------------------------------------------------------


def answer(handler: type[RepliesToMessages], message: bytes, client_address: Address) -> bytes | None:
    """Return the reply of a handler of this class. Any process that can import the class can run it.

    Raises: whatever `reply` raises, or a RuntimeError that describes it if pickle cannot carry it to another process; TypeError.
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


def _checked(handler: type[RepliesToMessages], reply: Any) -> bytes | None:
    if reply is None or type(reply) is bytes:
        return reply
    if isinstance(reply, bytes | bytearray | memoryview):
        return bytes(reply)
    raise TypeError(f"{handler.__name__}.reply must return bytes or None, not {type(reply).__name__}")


def _told(error: BaseException) -> str:
    with contextlib.suppress(Exception):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__
