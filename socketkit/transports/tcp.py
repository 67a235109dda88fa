"""TCP over IPv4 and IPv6."""

from __future__ import annotations

import socket
import struct
import sys
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import attrs

from socketkit.logs import Log
from socketkit.seams import Kind, Seconds
from socketkit.seams.validators import at_least, is_number
from socketkit.transports._inet import host_and_port, inet_url, interface_or_none, needed, open_inet, v6only_or_none
from socketkit.transports._sockets import LARGEST, StreamListener

log = Log("socketkit.transports")

PROBES = 3
"""How many keep-alive probes go unanswered before the system ends a connection."""


def _idle(_recipe: Any, field: Any, value: Any) -> None:
    if value is not None and (not is_number(value) or not 1 <= value <= 32767):  # noqa: PLR2004 - source: the kernel's net/tcp.h
        raise ValueError(f"{field.name} must be 1 to 32767 seconds, or none for no probes, not {value!r}")


@attrs.frozen
class TCP:
    """Connections to a host and port. Every option takes effect when the server opens."""

    host: str = attrs.field(validator=attrs.validators.instance_of(str))
    """Name or address of this machine; a name means all its addresses. Empty or ``*``: every address, IPv4 and IPv6."""
    port: int = attrs.field(validator=at_least(0, 65535))
    """0: any free port; `server.addresses` shows which."""
    backlog: int = attrs.field(default=1024, kw_only=True, validator=at_least(1, LARGEST))
    """Most connections that may wait in the kernel. The system caps it (net.core.somaxconn), which is logged as a warning."""
    reuse_address: bool = attrs.field(default=True, kw_only=True)
    """Bind even if old connections on this port are still in TIME_WAIT. Source: socket(7)."""
    reuse_port: bool = attrs.field(default=False, kw_only=True)
    """Share the port with other sockets of the same user that also set this. A socket that closes loses its queue. A restart does not need
    it. Source: socket(7), SO_REUSEPORT."""
    v6only: bool | None = attrs.field(default=None, kw_only=True, validator=v6only_or_none)
    """Whether IPv6 sockets leave IPv4 to others. With ``*``, true means two sockets, one for each family, on the same port; None or false
    means one for both, if the system can. With an IPv6 address, None means as the system is set up. Source: ipv6(7), IPV6_V6ONLY."""
    interface: str | None = attrs.field(default=None, kw_only=True, validator=interface_or_none)
    """Take only what arrives by this network interface, such as ``eth0`` (Linux); None: by any. Source: socket(7), SO_BINDTODEVICE."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """Send small writes immediately, without Nagle's delay. Source: tcp(7), TCP_NODELAY."""
    keepalive: Seconds | None = attrs.field(default=None, kw_only=True, validator=_idle)
    """Seconds without a sign of the peer after which the system probes it; three probes without an answer, a third of this time apart,
    end the connection with ETIMEDOUT. From 1 to 32767; None: no probes. Source: tcp(7), TCP_KEEPIDLE."""
    fastopen: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1, LARGEST)))
    """Most clients that have sent data with their SYN and are not yet known to exist: TCP Fast Open. Such data may arrive twice, so use it
    only for requests that do no harm twice. None: off. Source: RFC 7413; tcp(7), TCP_FASTOPEN."""

    kind: ClassVar[Kind] = "stream"

    locate = staticmethod(host_and_port)

    @property
    def requires(self) -> frozenset[str]:
        """Sockets, and what the options need."""
        return needed(self)

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
        sockets = open_inet(self, socket.SOCK_STREAM, self._activate, most)
        self._report(sockets[0][0])
        return [StreamListener(sock, url) for sock, url in sockets]

    def _activate(self, sock: socket.socket) -> None:
        if self.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it, and what follows
        if self.keepalive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ceil(self.keepalive))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ceil(self.keepalive / PROBES))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        if self.fastopen is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, self.fastopen)
        sock.listen(self.backlog)

    def _report(self, sock: socket.socket) -> None:
        """Log which of the options the system grants only in part."""
        queue = _most_queued(sock)
        if queue is not None and queue < self.backlog:
            message = "%s: the system lets %d connections wait, not the %d of backlog; raise net.core.somaxconn, or lower backlog"
            log.warning(message, self.url, queue, self.backlog)
        if self.fastopen is not None and not _takes_fast_open():
            log.warning("%s: the system takes no data with a SYN, so fastopen has no effect; set net.ipv4.tcp_fastopen to 3", self.url)


def _most_queued(sock: socket.socket) -> int | None:
    """Return how many connections may wait at a listening socket, as the system has it; None if it does not say.

    Source: linux/tcp.h, of whose `tcp_info` a listening socket uses the field `tcpi_sacked` for that.
    """
    if sys.platform != "linux":
        return None
    [queue] = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 28)
    return int(queue)


def _takes_fast_open() -> bool:
    """Return whether the system takes data with a SYN, if it says so. Source: the kernel's ip-sysctl.rst, tcp_fastopen."""
    try:
        return bool(int(Path("/proc/sys/net/ipv4/tcp_fastopen").read_text()) & 2)
    except OSError:
        return True
