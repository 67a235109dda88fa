"""UDP over IPv4 and IPv6."""

from __future__ import annotations

import socket
from typing import ClassVar

import attrs

from socketkit.seams import Kind
from socketkit.seams.validators import at_least
from socketkit.transports._inet import host_and_port, inet_url, interface_or_none, needed, open_inet, v6only_or_none
from socketkit.transports._sockets import DatagramListener


@attrs.frozen
class UDP:
    """Datagrams to a host and port. Every option takes effect when the server opens."""

    host: str = attrs.field(validator=attrs.validators.instance_of(str))
    """Name or address of this machine; a name means all its addresses. Empty or ``*``: every address, IPv4 and IPv6."""
    port: int = attrs.field(validator=at_least(0, 65535))
    """0: any free port; `server.addresses` shows which."""
    reuse_address: bool = attrs.field(default=False, kw_only=True)
    """On UDP this shares the port: the last socket to bind gets the datagrams. Source: socket(7)."""
    reuse_port: bool = attrs.field(default=False, kw_only=True)
    """Share the port with other sockets that also set this; the kernel spreads datagrams over them. Source: socket(7)."""
    v6only: bool | None = attrs.field(default=None, kw_only=True, validator=v6only_or_none)
    """As for `TCP`."""
    interface: str | None = attrs.field(default=None, kw_only=True, validator=interface_or_none)
    """As for `TCP`."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Largest datagram that arrives whole, in bytes; the default fits any that UDP can carry."""

    kind: ClassVar[Kind] = "datagram"

    locate = staticmethod(host_and_port)

    @property
    def requires(self) -> frozenset[str]:
        """Sockets, and what the options need."""
        return needed(self)

    @property
    def url(self) -> str:
        """``udp://host:port``."""
        return inet_url("udp", self.host, self.port)

    def open(self) -> DatagramListener:
        """Listen at the first address of the host only. Raises: ListenError."""
        return self._open(most=1)[0]

    def open_all(self) -> list[DatagramListener]:
        """Listen at every address of the host: a server does. Raises: ListenError, which names the address that cannot be bound."""
        return self._open()

    def _open(self, most: int | None = None) -> list[DatagramListener]:
        sockets = open_inet(self, socket.SOCK_DGRAM, lambda _sock: None, most)
        return [DatagramListener(sock, url, self.max_packet_size) for sock, url in sockets]
