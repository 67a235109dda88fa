"""What keeps a reply safe when its connection is closed before all that the client has sent was read.

To close a socket with unread bytes resets the connection: the kernel throws away what it has yet to send, and the client gets an error
where the end should be. Source: RFC 1122, 4.2.2.13; RFC 9112, 9.6.
"""

from __future__ import annotations

import socket
from typing import Any

try:
    from fcntl import ioctl
    from termios import FIONREAD
except ImportError:  # Windows
    ioctl = None  # type: ignore[assignment]

MOST = 1 << 20
"""Bytes that are thrown away for one connection, at most: whoever sends faster than that is reset."""

_SCRATCH = bytearray(1 << 16)  # written by everybody, read by nobody
_NONE = bytes(4)  # as an int
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)


def discard_unread(sock: Any) -> None:
    """Throw away what has come and was not read; never waits. For a socket that is about to be closed.

    Does nothing for what is no socket, and where the system does not tell how much there is.
    """
    if ioctl is None:
        return
    left = MOST
    try:  # no `suppress`: under some dispatchers this is run for every connection
        while left > 0 and ioctl(sock, FIONREAD, _NONE) != _NONE:  # no `recv` that would find nothing: those of some sockets wait
            left -= sock.recv_into(_SCRATCH, 0, _DONT_WAIT) or left  # at its end none is left
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # reset by now; or it has no descriptor
