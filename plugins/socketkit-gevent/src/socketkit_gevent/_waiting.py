"""Waiting for a descriptor, so that the greenlets of the thread run meanwhile."""

from __future__ import annotations

import select

import gevent.socket
from gevent._hub_local import get_hub_if_exists  # gevent has no public way to ask without creating a hub


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
