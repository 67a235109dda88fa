"""Sockets whose operations let other greenlets run when they would block."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket
from gevent._hub_local import get_hub_if_exists  # see `_waiting`

from socketkit_gevent._waiting import send_limit, until_ready

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
"""Seconds between two attempts to send if no descriptor signals when to retry."""

DONT_WAIT = int(socket.MSG_DONTWAIT)  # an enum would slow down each call


class GreenSocket(gevent.socket.socket):
    """A socket whose operations let other greenlets run when they would block. Any number of greenlets may wait to answer a datagram.

    A server may hand a request to a thread of its own. There the socket blocks the thread, as plain sockets do.

    On Linux the descriptor blocks if it did before, and only each call says not to wait: O_NONBLOCK would hold for a child process that
    the handler gives its connection to. Source: recv(2), send(2), MSG_DONTWAIT.
    """

    _sock: Any
    _read_event: Any
    hub: Any

    def __init__(self, family: int, kind: int, proto: int, fileno: int) -> None:
        blocks = sys.platform == "linux" and os.get_blocking(fileno)  # elsewhere send(2) may wait in spite of the flag
        super().__init__(family, kind, proto, fileno)
        os.set_blocking(fileno, blocks)

    def shutdown(self, how: int) -> None:
        """Shut down in the kernel only, which wakes a waiting greenlet as it would wake a thread. Any thread may call this."""
        self._sock.shutdown(how)

    # as in `socket.socket`; those that most handlers use wait here, because a further call would slow them down

    def recv(self, size: int, flags: int = 0) -> bytes:
        while True:
            try:
                return self._sock.recv(size, flags | DONT_WAIT)  # type: ignore[no-any-return]
            except BlockingIOError:
                if self.timeout == 0:
                    raise
            self._wait(self._read_event)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        while True:
            try:
                return self._sock.recv_into(buffer, size, flags | DONT_WAIT)  # type: ignore[no-any-return]
            except BlockingIOError:
                if self.timeout == 0:
                    raise
            self._wait(self._read_event)

    def recvfrom(self, size: int, flags: int = 0) -> Any:
        return super().recvfrom(size, flags | DONT_WAIT)

    def recvfrom_into(self, buffer: Any, size: int = 0, flags: int = 0) -> Any:
        return super().recvfrom_into(buffer, size, flags | DONT_WAIT)

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> Any:
        return super().recvmsg(size, ancillary_size, flags | DONT_WAIT)

    def recvmsg_into(self, buffers: Any, ancillary_size: int = 0, flags: int = 0) -> Any:
        return super().recvmsg_into(buffers, ancillary_size, flags | DONT_WAIT)

    def send(self, data: Any, flags: int = 0, **timeout: Any) -> int:
        try:
            return self._sock.send(data, flags | DONT_WAIT)  # type: ignore[no-any-return]
        except BlockingIOError:
            pass
        return super().send(data, flags | DONT_WAIT, **timeout)

    def sendto(self, data: Any, *rest: Any) -> int:
        *flags, address = rest
        return self._until_sent(lambda flag: self._sock.sendto(data, sum(flags) | flag, address))

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        return self._until_sent(lambda flag: self._sock.sendmsg(buffers, ancillary, flags | flag, address))

    def _until_sent(self, send: Callable[[int], int]) -> int:
        try:
            return send(DONT_WAIT)
        except BlockingIOError:
            if self.timeout == 0:
                raise
        if get_hub_if_exists() is not self.hub:  # in another thread
            return send(0)
        pause = FIRST_PAUSE
        with gevent.Timeout(*send_limit(self)):
            while True:
                if self.family == getattr(socket, "AF_UNIX", None) and self.type == socket.SOCK_DGRAM:
                    gevent.sleep(pause)  # the peer's queue is full, and no descriptor signals free space in it: unix(7)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    gevent.socket.wait_write(self.fileno())  # with its own watcher
                with contextlib.suppress(BlockingIOError):
                    return send(DONT_WAIT)

    # inside

    def _wait(self, watcher: Any) -> None:
        """Wait in the hub, or in this thread if the socket belongs to another one. gevent's own operations call this too."""
        is_here, sends = get_hub_if_exists() is self.hub, watcher is not self._read_event
        if is_here and not sends:
            super()._wait(watcher)  # type: ignore[misc] # missing in the stubs
            return
        seconds, error = send_limit(self) if sends else (self.timeout, TimeoutError("timed out"))
        if is_here:
            gevent.socket.wait(watcher, seconds, error)
        elif not until_ready(self.fileno(), seconds, sends=sends):
            raise error

    def _drop_events_and_close(self, closefd: bool = True, *rest: Any) -> None:
        """Leave the watchers to the thread that they belong to. gevent calls this to close and to detach."""
        drop = super()._drop_events_and_close  # type: ignore[misc] # missing in the stubs
        if get_hub_if_exists() is self.hub:
            drop(closefd, *rest)
            return
        with contextlib.suppress(AttributeError, ValueError):  # the hub is destroyed, and its watchers with it
            self.hub.loop.run_callback_threadsafe(drop, False)
        if closefd:
            self._sock.close()
