"""Sockets with TLS whose operations let other greenlets run when they would block. Imports `ssl` only in programs that use it."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import gevent.monkey
from gevent._hub_local import get_hub_if_exists  # see `_waiting`

from socketkit_gevent._waiting import send_limit, until_ready

if TYPE_CHECKING:
    from collections.abc import Callable

_ENCRYPTED: Any = gevent.monkey.get_original("ssl", "SSLSocket")
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def make_green(request: Any, classes: dict[type, type]) -> bool:
    """Have an `ssl.SSLSocket` wait in the hub, with the timeout that it has; return False if it is something else.

    It changes its class and stays the same object, because OpenSSL's state belongs to that: Modules/_ssl.c, PySSLSocket.

    classes: the green class for each class seen so far; a missing one is added.
    """
    kind = type(request)
    if not issubclass(kind, _ENCRYPTED) or issubclass(kind, GreenTLS):
        return issubclass(kind, GreenTLS)
    if kind not in classes:
        classes[kind] = type(kind.__name__, (GreenTLS, kind), {"__module__": kind.__module__})
    timeout = request.gettimeout()
    request.settimeout(0)  # of the socket below: its operations never block from now on
    request.__class__ = classes[kind]
    request.settimeout(timeout)
    return True


def _waiting(name: str, *, sends: bool = False) -> Callable[..., Any]:
    """Return a method that calls the one of the socket's own class until it does not have to wait.

    sends: what it waits for once the connection is no longer encrypted.
    """

    def method(self: GreenTLS, *arguments: Any, **options: Any) -> Any:
        call, end = getattr(super(GreenTLS, self), name), None
        while True:
            try:
                return call(*arguments, **options)
            except _WOULD_BLOCK as error:
                if self.timeout == 0:
                    raise
                writes = sends if isinstance(error, BlockingIOError) else isinstance(error, ssl.SSLWantWriteError)
            left, late = send_limit(self) if writes else (self.timeout, TimeoutError("timed out"))
            if self.timeout is not None:
                end = end or time.monotonic() + self.timeout
                left = max(0.0, end - time.monotonic())
            if not until_ready(self.fileno(), left, sends=writes):
                raise late

    method.__name__ = name
    return method


class GreenTLS:
    """What a green socket's class has before the class of `ssl.SSLSocket` that it had. In a thread without a hub it blocks the thread."""

    timeout: float | None = None  # it hides that of the socket below, which is always 0
    fileno: Callable[[], int]
    _sslobj: Any

    do_handshake = _waiting("do_handshake")
    read = _waiting("read")
    write = _waiting("write", sends=True)
    unwrap = _waiting("unwrap")
    send = _waiting("send", sends=True)
    # after `unwrap`, these read from the socket itself
    recv = _waiting("recv")
    recv_into = _waiting("recv_into")
    recvfrom = _waiting("recvfrom")
    recvfrom_into = _waiting("recvfrom_into")

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all, in parts. Raises: TimeoutError if a part takes longer than the timeout."""
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += self.send(rest[sent:], flags)

    def settimeout(self, value: float | None) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self.timeout = value

    def gettimeout(self) -> float | None:
        return self.timeout

    def setblocking(self, flag: bool) -> None:
        self.timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        return self.timeout != 0

    def shutdown(self, how: int) -> None:
        """Shut down. Any thread may call this for both sides: it does so in the kernel only, and a waiting greenlet sees the end."""
        if how == socket.SHUT_RDWR:
            _ENCRYPTED.__base__.shutdown(self, how)
        else:
            super().shutdown(how)  # type: ignore[misc] # that of the class behind this one

    def _real_close(self) -> None:
        hub = get_hub_if_exists()
        if hub is not None:
            hub.loop.closing_fd(self.fileno())  # wakes greenlets that wait for it
        super()._real_close()  # type: ignore[misc] # that of the class behind this one
