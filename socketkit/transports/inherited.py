"""Sockets that the process inherits from the program that started and bound them."""

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
from socketkit.transports._inet import bound_url
from socketkit.transports._sockets import StreamListener, inherited, unix_url
from socketkit.transports._wildcard import datagram_listener


def _kind(_recipe: Any, field: Any, value: Any) -> None:
    if value not in {"stream", "datagram"}:
        raise ValueError(f"{field.name} must be 'stream' or 'datagram', not {value!r}")


def _name(_recipe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, str) or not value or ":" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f"{field.name} must be a descriptor's name, printable ASCII without ':', not {value!r}")


@attrs.frozen
class InheritedFD:
    """A listening socket inherited from the parent process, given by descriptor number."""

    number: int = attrs.field(validator=at_least(0))
    """Descriptor number."""
    kind: Kind = attrs.field(default="stream", kw_only=True, validator=_kind)
    """``stream`` for a listening socket, ``datagram`` for a bound one."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """On TCP, send small writes immediately, without Nagle's delay."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Largest datagram that arrives whole, in bytes."""

    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    @property
    def url(self) -> str:
        """``fd://3``."""
        return f"fd://{self.number}"

    def open(self) -> Listener:
        """Return the listener, which owns the socket from now on: it can be opened once. Raises: ListenError."""
        listener = _open(self, lambda: activation.claim_descriptor(self.url, self.number))
        if listener is None:
            reason = "another listener of this process owns that descriptor"
            raise ListenError(errno.EADDRINUSE, self.url, reason, "give each listener a descriptor of its own")
        return listener


@attrs.frozen
class Systemd:
    """A listening socket from the service manager, given by name: ``FileDescriptorName=`` in its socket unit."""

    name: str = attrs.field(validator=_name)
    """Name of the socket; without ``FileDescriptorName=`` it is the name of the socket unit, such as ``web.socket``."""
    index: int = attrs.field(default=0, kw_only=True, validator=at_least(0))
    """Position among several sockets of one unit, in the order of its lines; 0 is the first."""
    kind: Kind = attrs.field(default="stream", kw_only=True, validator=_kind)
    """``stream`` for ``ListenStream=``, ``datagram`` for ``ListenDatagram=``."""
    nodelay: bool = attrs.field(default=True, kw_only=True)
    """On TCP, send small writes immediately, without Nagle's delay."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Largest datagram that arrives whole, in bytes."""

    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    @property
    def url(self) -> str:
        """``systemd://name``, or ``systemd://name?index=1``."""
        return f"systemd://{self.name}{f'?index={self.index}' if self.index else ''}"

    def open(self) -> Listener:
        """Return the listener, which owns the socket from now on: it can be opened once. Raises: ListenError."""
        listener = _open(self, lambda: activation.claim(self.url, self.name, self.index))
        if listener is None:
            reason = f"this process inherited no free socket of that name; free sockets: {', '.join(activation.names()) or 'none'}"
            raise ListenError(errno.ENOENT, self.url, reason, f"start it by a socket unit with FileDescriptorName={self.name}")
        return listener


def _open(recipe: InheritedFD | Systemd, claim: Callable[[], socket.socket | None]) -> Listener | None:
    """Return a listener on the socket that `claim` finds, or None. Raises: ListenError if the socket does not fit."""
    is_stream = recipe.kind == "stream"
    sock = inherited(recipe.url, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM, claim)
    if sock is None:
        return None
    if not is_stream:
        return datagram_listener(sock, _place(sock), recipe.max_packet_size)
    if recipe.nodelay and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    return StreamListener(sock, _place(sock))


def _place(sock: socket.socket) -> str:
    """Return the URL of a transport that would bind where this inherited socket listens."""
    address, is_stream = sock.getsockname(), sock.type == socket.SOCK_STREAM
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return bound_url("tcp" if is_stream else "udp", sock, address[0])
    path = "@" + address[1:].decode(errors="backslashreplace") if isinstance(address, bytes) else address
    return unix_url("unix" if is_stream else "unix-dgram", path)
