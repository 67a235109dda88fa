"""TCP over IPv4 and IPv6."""

from __future__ import annotations

import socket
from typing import ClassVar

import attrs

from socketkit.seams import Kind
from socketkit.seams.validators import at_least
from socketkit.transports._sockets import StreamListener, bind_inet, bound_url, host_and_port, inet_url, inherit_or_open


@attrs.frozen
class TCP:
    """Connections to a host and port. Every option takes effect when the server opens."""

    host: str = attrs.field(validator=attrs.validators.instance_of(str))
    """Name or address of this machine; empty or ``*``: every address, IPv4 and IPv6."""
    port: int = attrs.field(validator=at_least(0, 65535))
    """0: any free port; `server.addresses` shows which."""
    backlog: int = attrs.field(default=1024, kw_only=True, validator=at_least(1))
    """Most connections that may wait in the kernel; the system caps it (net.core.somaxconn)."""
    reuse_address: bool = attrs.field(default=True, kw_only=True)
    """Bind even if old connections on this port are still in TIME_WAIT. Source: socket(7)."""
    reuse_port: bool = attrs.field(default=False, kw_only=True)
    """Share the port with other sockets that also set this. A socket that closes loses its queue. Source: socket(7)."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """Send small writes immediately, without Nagle's delay. Source: tcp(7), TCP_NODELAY."""

    kind: ClassVar[Kind] = "stream"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    locate = staticmethod(host_and_port)

    @property
    def url(self) -> str:
        """``tcp://host:port``."""
        return inet_url("tcp", self.host, self.port)

    def open(self) -> StreamListener:
        """Return the listening socket. Raises: ListenError."""
        sock = inherit_or_open(self.url, socket.SOCK_STREAM, lambda: bind_inet(self, socket.SOCK_STREAM), self._activate)
        return StreamListener(sock, bound_url("tcp", sock, self.host))

    def _activate(self, sock: socket.socket) -> None:
        if self.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.listen(self.backlog)
