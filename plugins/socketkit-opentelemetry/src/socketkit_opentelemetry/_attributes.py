"""Attributes by the semantic conventions of OpenTelemetry (network, client, server, error, code), and those of socketkit."""

from __future__ import annotations

import contextlib
import os
import socket
from importlib import metadata
from typing import Any, Final

from socketkit.seams import Address, Request

SCOPE: Final = "socketkit_opentelemetry"
"""The instrumentation scope of all spans and metrics."""

VERSION: Final = metadata.version("socketkit-opentelemetry")

DISPATCHER: Final = "socketkit.dispatcher"
OUTCOME: Final = "socketkit.outcome"
URL: Final = "socketkit.url"
WAIT: Final = "socketkit.wait"
ERROR_TYPE: Final = "error.type"
FUNCTION: Final = "code.function.name"
PROCESS: Final = "process.pid"
FILE: Final = "file.path"

_NETWORKS = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_TRANSPORTS = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
_UNIX = getattr(socket, "AF_UNIX", None)


def of_address(role: str, address: Address) -> dict[str, str | int]:
    """Return the address and the port of "client", "server" or "network.peer"; nothing for a socket without a name."""
    if isinstance(address, tuple):
        return {f"{role}.address": str(address[0]), f"{role}.port": address[1]}
    if isinstance(address, bytes):
        address = f"@{os.fsdecode(address[1:])}"  # in the abstract namespace: unix(7)
    return {f"{role}.address": address} if address else {}


def of_request(request: Request) -> dict[str, str | int]:
    """Return what the socket of a request says about its two ends. A socket that knows nothing, or is closed, adds nothing."""
    found: dict[str, str | int] = {}
    is_datagram = isinstance(request, tuple)
    end: Any = request[1] if is_datagram else request
    with contextlib.suppress(AttributeError, OSError):
        if end.family == _UNIX:
            found["network.transport"] = "unix"
        elif end.family in _NETWORKS:
            found |= {"network.transport": _TRANSPORTS[end.type], "network.type": _NETWORKS[end.family]}
        found |= of_address("server", end.getsockname())
        if not is_datagram:
            found |= of_address("network.peer", end.getpeername())
    return found


def type_name(error: BaseException) -> str:
    """Return the name of an error's class as the conventions want it: with its module, unless it is built in."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
