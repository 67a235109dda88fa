"""UDP over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import ClassVar

import attrs

from socketkit.errors import ListenError
from socketkit.logs import Log
from socketkit.seams import Kind
from socketkit.seams.validators import at_least, frozen_list
from socketkit.transports._inet import host_and_port, inet_url, interface_or_none, needed, open_inet, v6only_or_none
from socketkit.transports._multicast import join, multicast_groups
from socketkit.transports._sockets import LARGEST, DatagramListener
from socketkit.transports._wildcard import datagram_listener

log = Log("socketkit.transports")


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
    recv_buffer: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1, LARGEST)))
    """Bytes of datagrams not yet taken that the system keeps; further datagrams are dropped. None: the system's default. The system caps it (net.core.rmem_max), which is logged as a warning. Source: socket(7), SO_RCVBUF."""
    groups: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=frozen_list, validator=multicast_groups)
    """Multicast groups to join, such as ``239.1.2.3``, by `interface`, or else by the one that the system chooses. The host must be ``*`` or
    another one that means every address, or the group itself. Source: ip(7), IP_ADD_MEMBERSHIP."""

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
        sockets = open_inet(self, socket.SOCK_DGRAM, self._activate, most)
        with contextlib.ExitStack() as opened:
            for sock, _ in sockets:
                opened.callback(sock.close)
            self._join([sock for sock, _ in sockets])
            opened.pop_all()
        return [datagram_listener(sock, url, self.max_packet_size) for sock, url in sockets]

    def _activate(self, sock: socket.socket) -> None:
        if self.recv_buffer is None:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.recv_buffer)
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        given = size // 2 if sys.platform == "linux" else size  # Linux doubles what it gives, for its own records; source: socket(7)
        if given < self.recv_buffer:
            message = "%s: the system gives a receive buffer of %d bytes, not the %d of recv_buffer; raise net.core.rmem_max"
            log.warning(message, self.url, given, self.recv_buffer)

    def _join(self, sockets: list[socket.socket]) -> None:
        """Join the groups. Raises: ListenError."""
        for group in self.groups:
            try:
                join(group, self.interface, sockets)
            except OSError as error:
                reason = f"the group {group} cannot be joined ({error.strerror})"
                remedy = "give an interface with addresses of its family, or the machine a route to the group"
                raise ListenError(error.errno, self.url, reason, remedy) from error
