"""Waiting for a descriptor, so that the greenlets of the thread run meanwhile."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Any

import gevent.socket
from gevent._hub_local import get_hub_if_exists  # gevent has no public way to ask without creating a hub

_TIMEVAL = struct.Struct("@ll")  # seconds and microseconds


def until_ready(fileno: int, seconds: float | None, *, sends: bool) -> bool:
    """Wait until a descriptor is readable, or with `sends` writable; return False if it is not within `seconds` (None: for ever).

    In a thread without a hub this blocks the thread. Raises: ValueError if the descriptor is closed.
    """
    if get_hub_if_exists() is None:
        poll = select.poll()
        poll.register(fileno, select.POLLOUT if sends else select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))
    wait = gevent.socket.wait_write if sends else gevent.socket.wait_read
    try:
        wait(fileno, seconds)  # with a watcher of its own, so that several greenlets may wait for one descriptor
    except TimeoutError:
        return False
    return True


def send_limit(sock: Any) -> tuple[float | None, OSError]:
    """Return how many seconds a send may wait for the peer (None: for ever), and what it then raises.

    Without a timeout of its own, a socket has that of the kernel, SO_SNDTIMEO, which is a server's limit `write_stall`. The kernel itself
    does not apply it to a call that must not wait. Source: socket(7), SO_SNDTIMEO; the error is the kernel's too.
    """
    timeout = sock.gettimeout()
    if timeout is not None:
        return timeout, TimeoutError("timed out")
    seconds, microseconds = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size))
    return seconds + microseconds / 1e6 or None, BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
