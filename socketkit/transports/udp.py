"""UDP over IPv4 and IPv6."""

from __future__ import annotations

import socket
from typing import ClassVar

import attrs

from socketkit.seams import Kind
from socketkit.seams.validators import at_least
from socketkit.transports._sockets import DatagramListener, bind_inet, bound_url, host_and_port, inet_url, inherit_or_open


@attrs.frozen
class UDP:
    """Datagrams to a host and port. Every option takes effect when the server opens."""

    host: str = attrs.field(validator=attrs.validators.instance_of(str))
    """Name or address of this machine; empty or ``*``: every address, IPv4 and IPv6."""
    port: int = attrs.field(validator=at_least(0, 65535))
    """0: any free port; `server.addresses` shows which."""
    reuse_address: bool = attrs.field(default=False, kw_only=True)
    """On UDP this shares the port: the last socket to bind gets the datagrams. Source: socket(7)."""
    reuse_port: bool = attrs.field(default=False, kw_only=True)
    """Share the port with other sockets that also set this; the kernel spreads datagrams over them. Source: socket(7)."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Largest datagram that arrives whole, in bytes; the default fits any that UDP can carry."""

    kind: ClassVar[Kind] = "datagram"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    locate = staticmethod(host_and_port)

    @property
    def url(self) -> str:
        """``udp://host:port``."""
        return inet_url("udp", self.host, self.port)

    def open(self) -> DatagramListener:
        """Return the bound socket. Raises: ListenError."""
        sock = inherit_or_open(self.url, socket.SOCK_DGRAM, lambda: bind_inet(self, socket.SOCK_DGRAM))
        return DatagramListener(sock, bound_url("udp", sock, self.host), self.max_packet_size)
