"""Multicast groups of UDP sockets. Sources: ip(7), IP_ADD_MEMBERSHIP; ipv6(7), IPV6_ADD_MEMBERSHIP."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any

from socketkit.seams.validators import check_each

_HOSTS = {"", "*", "0.0.0.0", "::"}

_ALL = {socket.IPPROTO_IP: 49, socket.IPPROTO_IPV6: 29} if sys.platform == "linux" else {}
"""IP_MULTICAST_ALL and IPV6_MULTICAST_ALL, for which Python has no constants. Source: linux/in.h, linux/in6.h."""


def multicast_groups(recipe: Any, field: Any, value: Any) -> None:
    """Accept a tuple of multicast addresses, if a socket at the recipe's host can get datagrams that are sent to them."""
    check_each(_group, field, value, "multicast addresses, such as 239.1.2.3")
    if value and recipe.host not in _HOSTS and {recipe.host} != set(value):
        reason = f"a socket that is bound to {recipe.host} gets none of their datagrams"
        raise ValueError(f"{field.name} must be empty unless the host means every address, as * does, or is the group: {reason}")
    v6 = next((group for group in value if ":" in group), None)
    if v6 is not None and recipe.host == "0.0.0.0":
        raise ValueError(f"{field.name} must not include {v6}, because 0.0.0.0 has only IPv4 addresses; listen at * for both families")


def _group(value: Any) -> None:
    from ipaddress import ip_address  # noqa: PLC0415 - needed only with groups

    if not isinstance(value, str) or "%" in value or not ip_address(value).is_multicast:
        raise ValueError(f"{value!r} is not a multicast address")


def join(group: str, interface: str | None, sockets: Iterable[socket.socket]) -> None:
    """Join a group with the socket that takes its family, by this interface or the one that the system chooses. Raises: OSError."""
    index = 0 if interface is None else socket.if_nametoindex(interface)
    if ":" in group:
        level, option = socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", index)
    else:
        level, option = socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP
        request = socket.inet_aton(group) + bytes(4) + (struct.pack("=i", index) if index else b"")
    sock = _taking(level, sockets)
    if level in _ALL:  # otherwise it also gets the datagrams of groups that other programs have joined
        sock.setsockopt(level, _ALL[level], 0)
    try:
        sock.setsockopt(level, option, request)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # a socket that was passed on has joined before
            raise


def _taking(level: int, sockets: Iterable[socket.socket]) -> socket.socket:
    """Return the socket that takes datagrams of a family, given as the level of its options. Raises: OSError if there is none."""
    for sock in sockets:
        own = socket.IPPROTO_IP if sock.family == socket.AF_INET else socket.IPPROTO_IPV6
        if level == own or (level == socket.IPPROTO_IP and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)):
            return sock
    raise OSError(errno.EAFNOSUPPORT, "the host has no address of its family")
