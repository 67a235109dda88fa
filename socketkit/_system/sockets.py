"""Questions to a socket that never wait: is it readable, is it writable, what comes next; and discarding what nobody read."""

from __future__ import annotations

import select
import socket
from typing import Any

try:
    from fcntl import ioctl
    from termios import FIONREAD
except ImportError:  # Windows
    ioctl = None  # type: ignore[assignment]

DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
"""The flag of one call that must not wait. Windows has none: there only a report of the selector says that a call will not wait."""

MOST_DISCARDED = 1 << 20
"""Bytes discarded for one connection, at most. A client that sends faster is reset."""

_PEEK = getattr(socket, "MSG_PEEK", 0) | DONT_WAIT
_SCRATCH = bytearray(1 << 16)  # written by everybody, read by nobody
_NONE = bytes(4)  # as an int


def is_readable(thing: Any, timeout: float | None = 0.0) -> bool:
    """Return whether a descriptor, or an object that has one, is readable; wait for it up to `timeout` seconds, None: for ever.

    Raises: OSError, ValueError when it is closed.
    """
    if not hasattr(select, "poll"):
        return bool(select.select([thing], [], [], timeout)[0])
    return _poll(thing, select.POLLIN, timeout)


def is_writable(thing: Any) -> bool:
    """Return whether it takes at least one more byte. Raises: as `is_readable`, and TypeError for what has no descriptor."""
    return _poll(thing, select.POLLOUT, 0.0) if hasattr(select, "poll") else bool(select.select([], [thing], [], 0)[1])


def _poll(thing: Any, events: int, timeout: float | None) -> bool:
    poll = select.poll()  # select(2) knows no descriptor from 1024 on
    poll.register(thing, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def peek(request: Any) -> bytes | None:
    """Return the next byte without taking it: b"" if the peer has closed its side or is gone, None if nothing is there yet."""
    try:
        first: bytes = request.recv(1, _PEEK)
    except BlockingIOError:
        return None
    except OSError:  # reset already: the handler will find out
        return b""
    return first


def discard_unread(sock: Any) -> None:
    """Read and discard what has arrived; never waits. Call it just before the socket is closed.

    Closing a socket with unread bytes resets the connection: the kernel then drops the part of the reply that it has not sent, and
    the client gets an error in place of the end. Does nothing for objects that are no socket, and where the system does not tell how
    much there is. Source: RFC 1122, 4.2.2.13; RFC 9112, 9.6.
    """
    if ioctl is None:
        return
    left = MOST_DISCARDED
    try:  # no `suppress`: under some dispatchers this is run for every connection
        while left > 0 and ioctl(sock, FIONREAD, _NONE) != _NONE:  # no `recv` that would find nothing: those of some sockets wait
            left -= sock.recv_into(_SCRATCH, 0, DONT_WAIT) or left  # at its end none is left
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # reset by now; or it has no descriptor
