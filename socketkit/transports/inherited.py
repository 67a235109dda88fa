"""Sockets that the process was started with: bound by whoever started it, and only served here."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from socketkit._system import activation
from socketkit.errors import ListenError
from socketkit.seams import Kind, Listener
from socketkit.seams.validators import at_least
from socketkit.transports._sockets import DatagramListener, StreamListener, inet_url, inherited, unix_url


def _kind(_recipe: Any, field: Any, value: Any) -> None:
    if value not in {"stream", "datagram"}:
        raise ValueError(f"{field.name} must be 'stream' or 'datagram', not {value!r}")


def _name(_recipe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, str) or not value or ":" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f"{field.name} must be a descriptor's name, printable ASCII without ':', not {value!r}")


@attrs.frozen
class InheritedFD:
    """A listening socket by the number of its descriptor, as whoever started this process left it open."""

    number: int = attrs.field(validator=at_least(0))
    """The number of the descriptor."""
    kind: Kind = attrs.field(default="stream", kw_only=True, validator=_kind)
    """``stream`` for a socket that listens, ``datagram`` for one that is bound."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """On TCP, send small writes at once, without Nagle's delay."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Bytes of the largest datagram that arrives whole."""

    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    @property
    def url(self) -> str:
        """``fd://3``."""
        return f"fd://{self.number}"

    def open(self) -> Listener:
        """Return the listener, which owns the socket from now on: it can be opened once. Raises: ListenError."""
        return _open(self, lambda: activation.claim_descriptor(self.url, self.number), _taken)


@attrs.frozen
class Systemd:
    """A listening socket by the name that the service manager has given it, as ``FileDescriptorName=`` in a socket unit."""

    name: str = attrs.field(validator=_name)
    """The name; without ``FileDescriptorName=`` it is that of the socket unit, such as ``web.socket``."""
    index: int = attrs.field(default=0, kw_only=True, validator=at_least(0))
    """Which one, of several sockets of one unit: they are in the order of their lines."""
    kind: Kind = attrs.field(default="stream", kw_only=True, validator=_kind)
    """``stream`` for ``ListenStream=``, ``datagram`` for ``ListenDatagram=``."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """On TCP, send small writes at once, without Nagle's delay."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Bytes of the largest datagram that arrives whole."""

    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    @property
    def url(self) -> str:
        """``systemd://name``, or ``systemd://name?index=1``."""
        return f"systemd://{self.name}{f'?index={self.index}' if self.index else ''}"

    def open(self) -> Listener:
        """Return the listener, which owns the socket from now on: it can be opened once. Raises: ListenError."""
        return _open(self, lambda: activation.claim(self.url, self.name, self.index), _nothing_there)


def _taken(recipe: InheritedFD) -> ListenError:
    reason = "that descriptor is another listener's of this process"
    return ListenError(errno.EADDRINUSE, recipe.url, reason, "give each listener a descriptor of its own")


def _nothing_there(recipe: Systemd) -> ListenError:
    there = ", ".join(activation.names()) or "none at all"
    reason = f"this process was not started with a socket of that name that is still free; there: {there}"
    remedy = f"start it by a socket unit with FileDescriptorName={recipe.name}"
    return ListenError(errno.ENOENT, recipe.url, reason, remedy)


def _open(recipe: Any, claim: Callable[[], socket.socket | None], missing: Callable[[Any], ListenError]) -> Listener:
    is_stream = recipe.kind == "stream"
    sock = inherited(recipe.url, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM, claim)
    if sock is None:
        raise missing(recipe)
    if not is_stream:
        return DatagramListener(sock, _place(sock), recipe.max_packet_size)
    if recipe.nodelay and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    return StreamListener(sock, _place(sock))


def _place(sock: socket.socket) -> str:
    """Return where an inherited socket listens, as the URL of a transport that would bind there."""
    address, is_stream = sock.getsockname(), sock.type == socket.SOCK_STREAM
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return inet_url("tcp" if is_stream else "udp", address[0], address[1])
    path = "@" + address[1:].decode(errors="backslashreplace") if isinstance(address, bytes) else address
    return unix_url("unix" if is_stream else "unix-dgram", path)
