"""Internet addresses: which ones the host of a recipe means, and the sockets that listen there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from socketkit._system import activation
from socketkit.errors import ListenError
from socketkit.logs import Log
from socketkit.seams.grammar import quote
from socketkit.transports._sockets import inherited, open_socket, opening

if TYPE_CHECKING:
    from socketkit.transports.tcp import TCP
    from socketkit.transports.udp import UDP

log = Log("socketkit.transports")

ATTEMPTS = 16
"""How many free ports are tried until one is free at every address of a host."""

_LONGEST_NAME = 15  # of an interface; source: linux/if.h, IFNAMSIZ

_INTERFACE_REMEDIES = {
    errno.ENODEV: "give an interface of this machine, such as `ip link` lists",
    errno.EPERM: "run with the capability CAP_NET_RAW, which Linux before 5.7 requires",
}

_EVERYWHERE = {"", "*"}
_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
_LOOPBACKS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_SCHEMES: dict[int, str] = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}


@attrs.frozen
class _Place:
    """An address to bind, and the URL that names it in errors."""

    url: str
    family: socket.AddressFamily
    address: tuple[Any, ...]
    """As `bind` takes it; sockets after the first use the port that the first one got."""
    v6only: bool | None
    """Whether an IPv6 socket leaves IPv4 to others; None: as the system is set up."""


# --- text ------------------------------------------------------------------------------------------------------------


def host_and_port(text: str) -> dict[str, Any]:
    """Return the host and port of ``host:port``, ``[v6]:port``, ``:port`` or ``*:port``.

    Raises: ValueError, whose message shows the right form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not (host.startswith("[") and host.endswith("]"))):  # noqa: PLR2004
        raise ValueError(f"{text!r} is not host:port; write 127.0.0.1:9999, [::1]:9999 or *:9999, with a port from 0 to 65535")
    return {"host": host.strip("[]"), "port": int(port)}


def inet_url(scheme: str, host: str, port: int) -> str:
    """Return the URL of an internet address: IPv6 in brackets, its scope after ``%25`` (RFC 6874), an empty host as ``*``."""
    shown = f"[{quote(host)}]" if ":" in host else quote(host) or "*"
    return f"{scheme}://{shown}:{port}"


def bound_url(scheme: str, sock: socket.socket, host: str = "") -> str:
    """Return the URL of a bound socket with the address that it has; a `host` that means every address stays ``*``."""
    address, port = socket.getnameinfo(sock.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return inet_url(scheme, "*" if host in _EVERYWHERE else address, int(port))


# --- options ---------------------------------------------------------------------------------------------------------


def v6only_or_none(recipe: Any, field: Any, value: Any) -> None:
    """Accept true, false or None; with an IPv4 address, only None."""
    if not isinstance(value, bool | None):
        raise ValueError(f"{field.name} must be true, false or none, not {value!r}")  # noqa: TRY004 - as every validator
    if value is None:
        return
    try:
        socket.inet_pton(socket.AF_INET, recipe.host)
    except OSError:
        return
    raise ValueError(f"{field.name} has no meaning for {recipe.host}; leave it out, or give an IPv6 address, a name or *")


def interface_or_none(_recipe: Any, field: Any, value: Any) -> None:
    """Accept the name of a network interface, or None."""
    if value is not None and (not isinstance(value, str) or not 0 < len(value.encode()) <= _LONGEST_NAME or "\0" in value):
        raise ValueError(f"{field.name} must be the name of a network interface, such as eth0, or none, not {value!r}")


_NEEDS = {
    "interface": "SO_BINDTODEVICE for interface",
    "reuse_port": "SO_REUSEPORT for reuse_port",
    "fastopen": "TCP_FASTOPEN for fastopen",
    "keepalive": "TCP_KEEPIDLE for keepalive",
}


def needed(recipe: TCP | UDP) -> frozenset[str]:
    """Return the platform features that a recipe needs: sockets, and one for each of these options that is set."""
    return frozenset({"sockets", *(feature for option, feature in _NEEDS.items() if getattr(recipe, option, None))})


# --- sockets ---------------------------------------------------------------------------------------------------------


def open_inet(
    recipe: TCP | UDP, kind: int, activate: Callable[[socket.socket], object], most: int | None = None
) -> list[tuple[socket.socket, str]]:
    """Return the sockets that listen at the addresses of the recipe's host, each with its URL. All of them are open, or none.

    They are inherited ones if there are any, else new ones. The next generation inherits the sockets.
    activate: makes a socket, inherited or new, listen as the transport requires.
    most: bind only so many addresses; None: all.
    Raises: ListenError; it names the address, if the host has several.
    """
    if recipe.reuse_port:
        message = "%s: with reuse_port, another process of the same user can take a share of the requests; a restart does not need it"
        log.warning(message, recipe.url)
    sockets = _inherit(recipe.url, kind, activate, most) or _bind(recipe, kind, activate, most)
    scheme, everywhere = _SCHEMES[kind], len(sockets) == 1 and recipe.host in _EVERYWHERE
    return [(sock, bound_url(scheme, sock, "*" if everywhere else sock.getsockname()[0])) for sock in sockets]


def _nth(url: str, index: int) -> str:
    """Return the URL under which a transport passes on its socket of this index."""
    return url if index == 0 else f"{url}#{index + 1}"


def _inherit(url: str, kind: int, activate: Callable[[socket.socket], object], most: int | None) -> list[socket.socket]:
    """Return the sockets that were passed on for a transport, whatever addresses its host has by now. Raises: ListenError."""
    with contextlib.ExitStack() as opened:
        found = list[socket.socket]()
        while len(found) != most:
            name = _nth(url, len(found))
            sock = inherited(name, kind, partial(activation.claim, name))
            if sock is None:
                break
            opened.callback(sock.close)
            with opening(name):
                activate(sock)
            found.append(sock)
        opened.pop_all()
    return found


def _bind(recipe: TCP | UDP, kind: int, activate: Callable[[socket.socket], object], most: int | None) -> list[socket.socket]:
    """Return new sockets, one for each address of the recipe's host. Raises: ListenError."""
    places = _places(recipe, kind)[:most]
    attempts = ATTEMPTS if recipe.port == 0 and len(places) > 1 else 1
    while True:
        attempts -= 1
        try:
            sockets = _bind_all(recipe, kind, places, activate)
        except ListenError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise
        else:
            for index, sock in enumerate(sockets):
                activation.listens(_nth(recipe.url, index), sock)
            return sockets


def _bind_all(recipe: TCP | UDP, kind: int, places: list[_Place], activate: Callable[[socket.socket], object]) -> list[socket.socket]:
    """Return a socket for each place, all with the port that the first one has got. Raises: ListenError."""
    with contextlib.ExitStack() as opened:
        sockets, port = list[socket.socket](), recipe.port
        for place in places:
            sock = open_socket(place.url, place.family, kind, partial(_prepare, recipe, place, port))
            opened.callback(sock.close)
            sockets.append(sock)
            port = sock.getsockname()[1]
        for place, sock in zip(places, sockets, strict=True):
            with opening(place.url):
                activate(sock)
        opened.pop_all()
    return sockets


def _prepare(recipe: TCP | UDP, place: _Place, port: int, sock: socket.socket) -> None:
    """Set the options that a socket must have before it is bound, and bind it. Raises: OSError."""
    if recipe.interface is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, recipe.interface.encode() + b"\0")
        except OSError as error:
            reason = f"the interface {recipe.interface!r} cannot be used ({error.strerror})"
            raise ListenError(error.errno, place.url, reason, _INTERFACE_REMEDIES.get(error.errno or 0, "leave interface out")) from error
    if recipe.reuse_address and os.name == "posix":  # on Windows SO_REUSEADDR lets two programs share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if recipe.reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if place.v6only is not None and place.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place.v6only)
    host, _, *scope = place.address
    sock.bind((host, port, *scope))


# --- addresses -------------------------------------------------------------------------------------------------------


def _places(recipe: TCP | UDP, kind: int) -> list[_Place]:
    """Return the addresses that the recipe's host means, without those of a family that this machine lacks. Raises: ListenError."""
    everywhere = recipe.host in _EVERYWHERE
    with opening(recipe.url):
        answers = socket.getaddrinfo(None if everywhere else recipe.host, recipe.port, type=kind, flags=socket.AI_PASSIVE)
    wanted = {family for family, *_ in answers} & _FAMILIES.keys()
    families = {family for family in wanted if _is_here(family)} if len(wanted) > 1 else wanted
    if families and families != wanted:
        lacking = ", ".join(_FAMILIES[family] for family in wanted - families)
        log.info("%s: this machine has no %s, so the server listens without it", recipe.url, lacking)
    families = families or wanted
    both, v6only = len(families) > 1, recipe.v6only
    if both and everywhere and not v6only and socket.has_dualstack_ipv6():
        families, v6only = {socket.AF_INET6}, False
    elif both and v6only is None:
        v6only = True  # otherwise [::] would take the port on IPv4 too
    found = dict.fromkeys((family, address) for family, *_, address in answers if family in families)  # a name may have one twice
    scheme = _SCHEMES[kind]
    return [
        _Place(inet_url(scheme, str(address[0]), recipe.port) if len(found) > 1 else recipe.url, family, address, v6only)
        for family, address in found
    ]


def _is_here(family: socket.AddressFamily) -> bool:
    """Return whether this machine has addresses of a family: it has none if IPv6 is switched off, or was never built in."""
    if family == socket.AF_INET6 and not socket.has_ipv6:
        return False
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((_LOOPBACKS[family], 0))
    except OSError as error:
        return error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
    return True
