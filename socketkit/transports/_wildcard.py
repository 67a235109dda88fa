"""Datagrams that come to any address of the machine, and replies that leave from the same address.

Without this the system chooses the source of a reply by its route, so a client that asked another address of the machine does not
recognize the reply. Linux only. Sources: ip(7), IP_PKTINFO; RFC 3542, 6.
"""

from __future__ import annotations

import socket
import sys
from typing import TypeAlias

from socketkit._system.sockets import DONT_WAIT
from socketkit.seams import Address
from socketkit.seams.replies import ReplySocket
from socketkit.transports._sockets import DatagramListener

Socket: TypeAlias = socket.socket  # inside the listener, `socket` is an attribute

_IP_PKTINFO = 8  # Python has no constant for it before 3.14; source: linux/in.h
_V4_SIZE, _V6_SIZE = 12, 20  # of struct in_pktinfo, and of struct in6_pktinfo
_ROOM = (socket.CMSG_SPACE(_V4_SIZE) + socket.CMSG_SPACE(_V6_SIZE)) if sys.platform == "linux" else 0  # an IPv6 socket gets both, for IPv4


def datagram_listener(sock: Socket, url: str, max_packet_size: int) -> DatagramListener:
    """Return the listener for a bound socket of any family."""
    everywhere = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.getsockname()[0] in {"0.0.0.0", "::"}
    kind = WildcardListener if everywhere and sys.platform == "linux" else DatagramListener
    return kind(sock, url, max_packet_size)


class WildcardListener(DatagramListener):
    """As `DatagramListener`, for a socket that is bound to all addresses: it hands out a `ReplySocket` for each datagram."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.socket.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def accept(self) -> tuple[tuple[bytes, Socket | ReplySocket], Address]:
        """As `DatagramListener.accept`."""
        data, control, _, address = self._receiving.recvmsg(self.max_packet_size + 1, _ROOM, DONT_WAIT)
        source = _source({level: value for level, _, value in control})
        return (data, self.socket if source is None else ReplySocket(self.socket, address, source)), address


def _source(info: dict[int, bytes]) -> tuple[int, int, bytes] | None:
    """Return the control message that has a reply leave from where its datagram came to; None if that address cannot send.

    info: the control messages of the datagram, by level.
    """
    if (
        v4 := info.get(socket.IPPROTO_IP)
    ) is not None:  # its second field is an address of this machine, also if the datagram was multicast
        return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + v4[4:8] + bytes(4)
    v6 = info.get(socket.IPPROTO_IPV6)
    if v6 is None or v6[0] == 0xFF:  # noqa: PLR2004 - multicast; source: RFC 4291, 2.7
        return None
    is_link_local = v6[0] == 0xFE and v6[1] & 0xC0 == 0x80  # noqa: PLR2004 - then its interface belongs to it; source: RFC 4291, 2.5.6
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, v6 if is_link_local else v6[:16] + bytes(4)
