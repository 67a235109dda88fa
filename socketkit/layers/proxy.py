"""The PROXY protocol: before the first byte, a proxy says in a header for which client it has connected."""

from __future__ import annotations

import socket
from functools import cached_property
from typing import Any, ClassVar, Literal

import attrs

from socketkit._system.networks import Networks, number
from socketkit.layers._proxy_header import ProxyHeader, decode
from socketkit.seams import Address, Request
from socketkit.seams.validators import at_least, check_each, frozen_list

UNIX = "unix"
"""The word among `ProxyProtocol.trusted` for all peers on Unix sockets."""

_LONGEST_WITHOUT_FIELDS = 16 + 2 * 108
_LONGEST_POSSIBLE = 16 + 0xFFFF


def _trusted(_recipe: object, field: Any, value: Any) -> None:
    from ipaddress import ip_network  # noqa: PLC0415 - needed only with this layer, and each composition by name loads all parts

    check_each(lambda each: each == UNIX or ip_network(each), field, value, "networks, such as 10.0.0.0/8, or the word unix")
    if not value:
        raise ValueError(
            f"{field.name} must list your proxies, because a header from anyone else could claim any address; write the networks "
            f'they connect from, as in proxy.trusted=10.0.0.0/8 or ProxyProtocol(["10.0.0.0/8"]), or unix for those on a Unix socket'
        )


def _versions(_recipe: object, field: Any, value: Any) -> None:
    if not isinstance(value, tuple) or not value or any(each not in (1, 2) for each in value):
        raise ValueError(f"{field.name} must be a list of 1, 2 or both, not {value!r}")


@attrs.frozen(slots=False)  # a cached property needs a `__dict__`
class ProxyProtocol:
    """Reads the header that a proxy sends first, version 1 or 2, and gives handlers the client's address.

    Source: HAProxy, doc/proxy-protocol.txt.
    """

    trusted: tuple[str, ...] = attrs.field(default=(), converter=frozen_list, validator=_trusted)
    """Networks that your proxies connect from, and ``unix`` if they connect to a Unix socket. Required: it has at least one entry."""
    untrusted: Literal["refuse", "plain"] = attrs.field(default="refuse", kw_only=True, validator=attrs.validators.in_(("refuse", "plain")))
    """What happens to any other peer. refuse: its connection ends. plain: it is served as a client without a proxy, and nothing that
    it sends is taken for a header."""
    versions: tuple[Literal[1, 2], ...] = attrs.field(default=(1, 2), converter=frozen_list, kw_only=True, validator=_versions)
    """Versions of the protocol to accept."""
    max_header: int = attrs.field(default=4096, kw_only=True, validator=at_least(_LONGEST_WITHOUT_FIELDS, _LONGEST_POSSIBLE))
    """Most bytes of a header of version 2, with its fields; a longer one ends the connection before it is read."""

    needs_socket: ClassVar[bool] = True
    names_client: ClassVar[bool] = True

    @cached_property
    def _networks(self) -> Networks:
        return Networks(each for each in self.trusted if each != UNIX)

    def trusts(self, peer: Address) -> bool:
        """Return whether a peer with this address has to send a header."""
        if not isinstance(peer, tuple):
            return UNIX in self.trusted
        who = number(peer)
        return who is not None and who in self._networks

    def begin(self, request: Request, client_address: Address) -> _Arrival:
        """Return the handshake that reads the header. Raises: ValueError if the peer is not trusted."""
        trusts = self.trusts(client_address)
        if not trusts and self.untrusted == "refuse":
            raise ValueError("proxy: not from a trusted network")
        return _Arrival(request, client_address, self, trusts)


class _Arrival:
    """One connection, until its header has been read: see `socketkit.seams.Handshake`."""

    sends = False

    def __init__(self, request: Request, peer: Address, recipe: ProxyProtocol, has_header: bool) -> None:
        self.request = request
        self._peer = peer
        self._recipe = recipe
        self._has_header = has_header
        self._received = b""

    def go_on(self) -> ProxiedAddress | None:
        """Look at what has arrived, then read as much of it as belongs to the header, and return the address if that is all of it.

        That takes two system calls for a header in one piece, which is how proxies send it. Reads of what is certain to be missing
        would take as many for version 2, but more for version 1, whose end is seen only once it is read. The start of a header is
        read too: left in place, it would make the socket readable all the time.
        """
        if not self._has_header:
            return proxied(self._peer, None)
        try:
            ahead = self.request.recv(self._recipe.max_header, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if not ahead:
            raise ConnectionAbortedError("proxy: the peer has closed before its header was complete")
        found = decode(self._received + ahead, self._recipe.versions, self._recipe.max_header)
        if isinstance(found, int):
            self._received += self._read(len(ahead))
            return None
        header, size = found
        self._read(size - len(self._received))
        return proxied(self._peer, header)

    def _read(self, size: int) -> bytes:
        """Read bytes that have been looked at. Raises: OSError if they are gone because the peer has reset the connection."""
        data: bytes = self.request.recv(size)
        if len(data) < size:
            raise ConnectionAbortedError("proxy: the header could not be read")
        return data


# --- addresses -------------------------------------------------------------------------------------------------------


class ProxiedAddress:
    """The address of a client that comes by way of a proxy.

    It equals the plain address, and can be used as one: a tuple such as ``("192.0.2.7", 50000)``, or text or bytes for a Unix socket.
    """

    via: Address
    """Address of the peer that has connected to the server: the proxy."""
    proxy: ProxyHeader | None
    """The header that it has sent; None for a peer that is not trusted, and is served without one."""


class _InetAddress(ProxiedAddress, tuple[Any, ...]):
    """Host and port, and two more elements for IPv6."""

    __slots__ = ()


class _UnixPath(ProxiedAddress, str):
    """A path, empty for a client without one."""

    __slots__ = ()


class _AbstractName(ProxiedAddress, bytes):
    """An abstract name, with its leading NUL."""

    __slots__ = ()


_FORMS: dict[type, type[Any]] = {tuple: _InetAddress, str: _UnixPath, bytes: _AbstractName}


def proxied(peer: Address, header: ProxyHeader | None) -> ProxiedAddress:
    """Return the client's address: that in the header, or the peer's own if there is none."""
    plain = peer if header is None or header.source is None else header.source
    form = next((form for kind, form in _FORMS.items() if isinstance(plain, kind)), None)
    address: ProxiedAddress = _UnixPath() if form is None else form(plain)  # a transport may say None for a client without a path
    address.via, address.proxy = peer, header
    return address
