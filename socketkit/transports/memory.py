"""Connections that a program makes to its own server, without an address."""

from __future__ import annotations

import errno
import os
import socket
from typing import ClassVar

import attrs

from socketkit._system.children import keep_private
from socketkit.seams import Address, Kind
from socketkit.seams.grammar import quote
from socketkit.transports._sockets import Owner, Socket

_AF_UNIX = getattr(socket, "AF_UNIX", -1)
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@attrs.frozen
class Memory:
    """Connections that the program itself makes with `Server.connect`. No port or path is used, and no other program can connect."""

    name: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    """Tells several of one server apart. It is part of the URL and of nothing else."""

    kind: ClassVar[Kind] = "stream"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets", "Unix sockets", "descriptor passing"})

    @property
    def url(self) -> str:
        """``memory://`` or ``memory://name``."""
        return f"memory://{quote(self.name)}"

    def open(self) -> HandedListener:
        """Return the listener. Raises: OSError if no descriptor is left."""
        return HandedListener.create(self.url)


@attrs.define(eq=False)
class HandedListener(Owner):
    """Live stream transport of connected sockets that this process hands it, in the order in which they were handed over.

    A socket waits in a pair of sockets, as a message with its descriptor: unix(7), SCM_RIGHTS. Forked processes share that pair, and the
    system gives each message to one of them, as it does with the queue of a listening socket.
    """

    _outbox: Socket
    _peer: Address

    @classmethod
    def create(cls, url: str, peer: Address = "") -> HandedListener:
        """Return a new listener. peer: the address of all its clients. Raises: OSError."""
        inbox, outbox = socket.socketpair(_AF_UNIX)
        inbox.setblocking(False)
        outbox.setblocking(True)
        return cls(inbox, url, outbox, peer, on_close=outbox.close)

    def accept(self) -> tuple[Socket, Address]:
        """Return the next connection, which is blocking and has no timeout.

        If no descriptor is left, the connection is lost, and its client sees the end of the stream.
        """
        _, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1, _CLOSE_ON_EXEC)
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        connection = socket.socket(fileno=descriptors[0])
        connection.set_inheritable(False)
        connection.setblocking(True)
        return connection, self._peer

    def connect(self) -> Socket:
        """Return a client's socket that is connected to this listener. It is closed in forked processes. Owner: the caller.

        Waits while more connections are queued than the pair of sockets holds: about 270 on Linux.
        Raises: ConnectionRefusedError once the listener is closed; OSError if no descriptor is left.
        """
        client, connection = socket.socketpair(_AF_UNIX)
        keep_private(client)  # a child that serves the other end would never see that the client has closed this one
        try:
            self.hand_over(connection)
        except BaseException:
            client.close()
            raise
        return client

    def hand_over(self, connection: Socket) -> None:
        """Queue a connected socket, and close this copy of it. Raises: as `connect`."""
        with connection:
            try:
                socket.send_fds(self._outbox, [b"\0"], [connection.fileno()])
            except OSError as error:
                if error.errno not in {errno.EPIPE, errno.ECONNRESET, errno.EBADF}:  # ECONNRESET: others still wait in its queue
                    raise
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"{self.url} is closed; start its server first") from error
