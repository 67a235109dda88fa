"""Clients of a server under test."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from socketkit.seams import Kind, Seconds


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


def hang_up(client: socket.socket) -> None:
    """Close a client's socket, and its connection even where a forked child has a copy."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    client.close()
