"""Clients of a server under test."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from socketkit.seams import Address, Kind, Seconds


def address(url: str) -> Address:
    """Return the address to connect to, for a URL of `Server.urls` or one that ``socketkit serve`` has printed."""
    scheme, _, place = url.partition(":")
    if scheme.startswith("unix"):
        return "\0" + place[1:] if place.startswith("@") else place.removeprefix("//")
    host, _, port = place.removeprefix("//").rpartition(":")
    return host.strip("[]"), int(port)


def connect(address: Any, kind: Kind, timeout: Seconds) -> socket.socket:
    """Return a client's socket with this timeout, connected to the address of a listener. The caller closes it. Raises: OSError."""
    is_unix = isinstance(address, str | bytes)
    family = socket.AF_UNIX if is_unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
    try:
        if is_unix and kind == "datagram":
            client.bind("")  # without an address of its own, it could not be answered. Source: unix(7), "Autobind feature"
        client.settimeout(timeout)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def talk(address: Any, data: bytes, timeout: Seconds = 10.0) -> bytes:
    """Connect, send the data and its end, and return all that the server sends until it closes.

    timeout: for each single step. Raises: OSError, of which TimeoutError is one.
    """
    with connect(address, "stream", timeout) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    """Return all that the server still sends to a client until it closes. Raises: OSError, of which TimeoutError is one."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask(address: Any, data: bytes, timeout: Seconds = 10.0) -> bytes:
    """Send one datagram, and return the first one that the server answers. Raises: OSError, of which TimeoutError is one."""
    with connect(address, "datagram", timeout) as client:
        client.send(data)
        return client.recv(65536)


def hang_up(client: socket.socket) -> None:
    """Close a client's socket, and its connection even where a forked child has a copy."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    client.close()
