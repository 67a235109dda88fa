"""Checks on a socket, which never block unless asked to: is it readable, is it writable, what comes next; and how to close one well."""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
import struct
import sys
from functools import partial

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

try:
    from fcntl import ioctl
    from termios import FIONREAD
except ImportError:  # Windows
    ioctl = None  # type: ignore[assignment]

DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
"""The flag for a single non-blocking call. Windows has none: there only a selector can tell that a call will not block."""

MOST_DISCARDED = 1 << 20
"""Most bytes discarded for one connection. A client that sends more may be reset."""

_INET = (socket.AF_INET, getattr(socket, "AF_INET6", socket.AF_INET))
_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_BYTES_ACKNOWLEDGED, _BYTES_RECEIVED = slice(120, 128), slice(128, 136)  # of struct tcp_info; source: linux/tcp.h

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_TIMEVAL = struct.Struct("@ll")  # seconds and microseconds

_PEEK = getattr(socket, "MSG_PEEK", 0) | DONT_WAIT
_SCRATCH = bytearray(1 << 16)  # shared by all threads, written but never read
_NONE = bytes(4)  # as an int


def is_readable(thing: Any, timeout: float | None = 0.0) -> bool:
    """Return whether a descriptor, or an object that has one, is readable; wait up to `timeout` seconds, None: for ever.

    Raises: OSError, ValueError when it is closed.
    """
    if not hasattr(select, "poll"):
        return bool(select.select([thing], [], [], timeout)[0])
    return _poll(thing, select.POLLIN, timeout)


def is_writable(thing: Any, timeout: float | None = 0.0) -> bool:
    """Return whether it accepts at least one more byte; wait as `is_readable`. Raises: as that, and TypeError without a descriptor."""
    return _poll(thing, select.POLLOUT, timeout) if hasattr(select, "poll") else bool(select.select([], [thing], [], timeout)[1])


def until_ready(thing: Any, seconds: float | None, *, sends: bool) -> bool:
    """Wait until it is readable, or with `sends` writable; return whether it is after `seconds`. Raises: as `is_readable`."""
    return (is_writable if sends else is_readable)(thing, seconds)


def _poll(thing: Any, events: int, timeout: float | None) -> bool:
    poll = select.poll()  # select(2) cannot watch descriptors from 1024 on
    poll.register(thing, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def peek(request: Any) -> bytes | None:
    """Return the next byte without consuming it: b"" if the peer has closed its side or is gone, None if nothing has arrived yet.

    Of a socket that does not take flags, such as one with TLS, any byte, because nobody can say which is next.
    """
    try:
        if request.gettimeout() and not is_readable(request):  # with a timeout, Python waits before it calls recv(2), whatever the flags
            return None
        first: bytes = request.recv(1, _PEEK)
    except BlockingIOError:
        return None
    except ValueError:  # it is closed, or takes no flags
        return b"" if request.fileno() == -1 else b"?" if has_pending(request) or is_readable(request) else None
    except OSError:  # already reset: the handler will see the error
        return b""
    return first


def received(request: Any) -> int | None:
    """Return how many bytes a TCP connection has received; None if the system does not say, or it is no such connection."""
    return _tcp_info(request, _BYTES_RECEIVED)


def acknowledged(request: Any) -> int | None:
    """Return how many of the bytes sent over a TCP connection the peer's system has taken; None as for `received`."""
    return _tcp_info(request, _BYTES_ACKNOWLEDGED)


def _tcp_info(request: Any, field: slice) -> int | None:
    try:
        if _TCP_INFO is None or request.family not in _INET:
            return None
        info = request.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED.stop)
    except (OSError, AttributeError):  # closed, or not a socket
        return None
    return int.from_bytes(info[field], sys.byteorder) if len(info) == _BYTES_RECEIVED.stop else None


def reset(sock: Any) -> None:
    """Close a socket and reset its connection, so that the peer cannot take a reply that was cut off for a complete one.

    Source: socket(7), SO_LINGER.
    """
    with contextlib.suppress(OSError):  # it is closed
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def cut_off(request: Any) -> None:
    """Shut down a connection in both directions, from any thread. Raises: OSError if it is closed; AttributeError for a datagram.

    An `ssl.SSLSocket` would drop its TLS object, and its handler's thread would then read what is encrypted.
    """
    if hasattr(request, "pending") and isinstance(request, socket.socket):
        socket.socket.shutdown(request, socket.SHUT_RDWR)
    else:
        request.shutdown(socket.SHUT_RDWR)


def limit_sends(sock: Any, seconds: float) -> None:
    """Have a blocking send that has sent nothing for that time fail with EAGAIN; accepted sockets inherit it.

    Source: socket(7), SO_SNDTIMEO.
    """
    whole = int(seconds)
    value = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6) or not whole)  # 0 would mean no limit
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def is_open(thing: Any) -> bool:
    """Return whether it is a socket, or anything else with a descriptor, that is not closed."""
    try:
        return bool(thing.fileno() != -1)
    except (AttributeError, OSError, ValueError):
        return False


def is_patched(sock: Any) -> bool:
    """Return whether gevent has put it in the place of Python's socket: then it waits where that raises BlockingIOError."""
    return not isinstance(sock, _socket.socket)


def has_pending(request: Any) -> bool:
    """Return whether a socket with TLS has decrypted bytes that nobody has read yet, which never make its descriptor readable."""
    pending = getattr(request, "pending", None)
    return bool(pending is not None and pending())


def has_unread(request: Any) -> bool:
    """Return whether something of the peer waits to be read, decrypted or not, or its end. True as well if nobody can say.

    For a socket with TLS it takes half the time of `peek`, which has to fail first.
    """
    try:
        return has_pending(request) or is_readable(request)
    except (OSError, ValueError, TypeError):  # it is closed, or has no descriptor
        return True


def discard_unread(sock: Any) -> None:
    """Read and discard bytes that have arrived; never blocks. Call it just before the socket is closed.

    Closing a socket with unread bytes resets the connection: the kernel then drops the unsent part of the reply, and the client gets an
    error instead of end of stream. Does nothing for objects that are not sockets, or where the system does not report how many bytes
    are waiting. Source: RFC 1122, 4.2.2.13; RFC 9112, 9.6.
    """
    if ioctl is None:
        return
    left = MOST_DISCARDED
    try:  # not `suppress`, which is slower: some dispatchers run this for every connection
        receive = partial(socket.socket.recv_into, sock) if hasattr(sock, "pending") else sock.recv_into  # not decrypted
        while left > 0 and ioctl(sock, FIONREAD, _NONE) != _NONE:  # never `recv` from an empty socket: some block
            left -= receive(_SCRATCH, 0, DONT_WAIT) or left  # 0 bytes: end of stream
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # already reset, or it has no descriptor
