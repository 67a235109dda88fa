"""``socketkit serve --inetd``: serves the socket that inetd(8) leaves as standard input, and ends.

inetd leaves either a connection that it has accepted (``nowait``), or a listening or datagram socket, which it watches again once the
process has ended (``wait``).
"""

from __future__ import annotations

import io
import os
import socket
import stat
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import attrs
import click

from socketkit.cli._servers import run_of
from socketkit.seams import Kind
from socketkit.seams.stats import Stats
from socketkit.transports.inherited import InheritedFD
from socketkit.transports.memory import HandedListener

if TYPE_CHECKING:
    from socketkit.seams import Transport
    from socketkit.server import Server

OFTEN = 0.25
"""Seconds between two checks whether the only request has ended. The client does not wait for that: the server closes the connection."""


def take() -> socket.socket | None:
    """Take the socket that is standard input away from the standard streams, so that nothing the program prints reaches a client.

    Each standard stream that is this socket becomes /dev/null. What is written to `sys.stderr` then goes to the system log.
    Returns: the socket, owned by the caller; None if standard input is no socket.
    """
    taken = _status(0)
    if taken is None or not stat.S_ISSOCK(taken.st_mode):
        return None
    import fcntl  # noqa: PLC0415 - only systems with inetd have it

    sock = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3))
    with open(os.devnull, "r+b", buffering=0) as nothing:  # noqa: PTH123 - the rest of this function uses os
        for number in range(3):
            status = _status(number)
            if status is not None and os.path.samestat(status, taken):
                os.dup2(nothing.fileno(), number)
                if number == 2:  # noqa: PLR2004 - standard error
                    sys.stderr = SystemLog()
    return sock


def _status(number: int) -> os.stat_result | None:
    try:
        return os.fstat(number)
    except OSError:  # closed
        return None


class SystemLog(io.TextIOBase):
    """A stream whose lines go to the system log, syslog(3). On a system without one they are lost."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self) -> None:
        import syslog  # noqa: PLC0415 - only systems with inetd have it

        syslog.openlog("socketkit", syslog.LOG_PID, syslog.LOG_DAEMON)
        self._send = partial(syslog.syslog, syslog.LOG_WARNING)
        self._line = ""

    def write(self, text: str) -> int:
        """Send the lines that are complete, and keep the rest."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._send(line.replace("\0", "\\0").encode(self.encoding, self.errors).decode())
        return len(text)


@attrs.frozen
class Task:
    """What inetd wants served, and for how long.

    idle: how many seconds the server stays when it has nothing to do. least: how many requests it serves in any case.
    """

    transport: Transport
    idle: float
    least: int = 0

    def begin(self, server: Server) -> None:
        """Have the server stop once it has been idle for long enough. Call it when the server is about to serve."""
        run = run_of(server)
        assert run is not None  # noqa: S101 - it is about to serve
        run.on_ready(_IdleCheck(server, self).look, max(self.idle / 4, 0.01) if self.idle else OFTEN)


def task(sock: socket.socket | None, idle: float) -> Task:
    """Return what to do with the socket that `take` has returned. Raises: click.UsageError if nothing can be served on it."""
    if sock is None:
        what = "a terminal" if os.isatty(0) else "not a socket"
        raise click.UsageError(f"With --inetd, standard input is the socket, and it is {what}; let inetd start this, or give --listen URL.")
    if sock.type == socket.SOCK_DGRAM:
        return Task(InheritedFD(sock.detach(), kind="datagram"), idle)
    if sock.type != socket.SOCK_STREAM:
        raise click.UsageError("Standard input is a socket of neither type stream nor dgram; change that in inetd.conf.")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return Task(InheritedFD(sock.detach()), idle)
    try:
        return Task(Accepted(sock, sock.getpeername()), 0, least=1)
    except OSError:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # the client has reset its connection: there is nothing left to do
            sys.exit(0)
        raise click.UsageError("Standard input is a socket that neither listens nor is connected; pass it on after listen().") from None


@attrs.frozen
class Accepted:
    """Transport: one connection that another program has accepted. It can be opened once."""

    connection: socket.socket
    peer: object

    kind: ClassVar[Kind] = "stream"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets", "descriptor passing"})
    url: ClassVar[str] = "inetd://"

    def open(self) -> HandedListener:
        """Return a listener with the connection in its queue. Raises: OSError."""
        listener = HandedListener.create(self.url, self.peer)
        if self.connection.family in {socket.AF_INET, socket.AF_INET6}:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `TCP` does
        listener.hand_over(self.connection)
        return listener


@attrs.define(eq=False)
class _IdleCheck:
    """Looks whether a server is idle. It looks at the counts, because they are right under every dispatcher."""

    _server: Server
    _task: Task
    _before: Stats | None = None
    _since: float = 0.0

    def look(self) -> None:
        stats, now = self._server.stats(), time.monotonic()
        if stats.active or stats != self._before or stats.accepted < self._task.least:
            self._before, self._since = stats, now
        elif now - self._since >= self._task.idle:
            self._server.stop(wait=False)
