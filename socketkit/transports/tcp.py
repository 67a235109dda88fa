"""TCP over IPv4 and IPv6."""

from __future__ import annotations

import socket
from typing import ClassVar

import attrs

from socketkit.seams import Kind
from socketkit.seams.validators import at_least
from socketkit.transports._inet import host_and_port, inet_url, open_inet, v6only
from socketkit.transports._sockets import StreamListener


@attrs.frozen
class TCP:
    """Connections to a host and port. Every option takes effect when the server opens."""

    host: str = attrs.field(validator=attrs.validators.instance_of(str))
    """Name or address of this machine; a name means all its addresses. Empty or ``*``: every address, IPv4 and IPv6."""
    port: int = attrs.field(validator=at_least(0, 65535))
    """0: any free port; `server.addresses` shows which."""
    backlog: int = attrs.field(default=1024, kw_only=True, validator=at_least(1))
    """Most connections that may wait in the kernel; the system caps it (net.core.somaxconn)."""
    reuse_address: bool = attrs.field(default=True, kw_only=True)
    """Bind even if old connections on this port are still in TIME_WAIT. Source: socket(7)."""
    reuse_port: bool = attrs.field(default=False, kw_only=True)
    """Share the port with other sockets that also set this. A socket that closes loses its queue. Source: socket(7)."""
    v6only: bool | None = attrs.field(default=None, kw_only=True, validator=v6only)
    """Whether IPv6 sockets leave IPv4 to others. With ``*``, true means two sockets, one for each family, on the same port; None or false
    means one for both, if the system can. With an IPv6 address, None means as the system is set up. Source: ipv6(7), IPV6_V6ONLY."""
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
        """Listen at the first address of the host only. Raises: ListenError."""
        return self._open(most=1)[0]

    def open_all(self) -> list[StreamListener]:
        """Listen at every address of the host: a server does. Raises: ListenError, which names the address that cannot be bound."""
        return self._open()

    def _open(self, most: int | None = None) -> list[StreamListener]:
        return [StreamListener(sock, url) for sock, url in open_inet(self, socket.SOCK_STREAM, self._activate, most)]

    def _activate(self, sock: socket.socket) -> None:
        if self.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.listen(self.backlog)
