"""Internet addresses as numbers, and sets of networks."""

from __future__ import annotations

import socket
from collections.abc import Iterable

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

_V4_MAPPED = bytes(10) + b"\xff\xff"

V4_BITS, V6_BITS = 32, 128


def number(client_address: Any) -> tuple[int, int] | None:
    """Return an internet address as its length in bits and its integer value; None for any other address."""
    if not isinstance(client_address, tuple) or not isinstance(client_address[0], str):
        return None
    host = client_address[0]
    try:
        return V4_BITS, int.from_bytes(socket.inet_pton(socket.AF_INET, host), "big")
    except OSError:
        pass
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return None
    if packed.startswith(_V4_MAPPED):
        return V4_BITS, int.from_bytes(packed[len(_V4_MAPPED) :], "big")
    return V6_BITS, int.from_bytes(packed, "big")


class Networks:
    """A set of networks; test results of `number` with `in`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: list[tuple[int, int, int]] = []
        for text in texts:
            from ipaddress import ip_network  # noqa: PLC0415 - only when networks are given

            network = ip_network(text)
            self._known.append((network.max_prefixlen, int(network.netmask), int(network.network_address)))

    def __bool__(self) -> bool:
        return bool(self._known)

    def __contains__(self, who: tuple[int, int]) -> bool:
        bits, value = who
        return any(bits == each and value & mask == network for each, mask, network in self._known)
