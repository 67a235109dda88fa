"""``composed TRANSPORT HANDLER DISPATCHER [CERTIFICATE]``: a `socketkit.Server` of parts, with TLS if it has a certificate."""

from __future__ import annotations

import os
import sys
from typing import Any

import socketkit
from socketkit import TCP, UDP, Server
from socketkit.dispatchers.adaptive import Adaptive

from .handlers import handler


def dispatcher(name: str) -> Any:
    """Return the recipe, or the text that stands for it."""
    if name in {"prefork", "interpreters"}:
        return f"{name}:{os.cpu_count() or 1}/adaptive"
    return Adaptive() if name == "adaptive" else name


def transport(name: str, *certificate: str) -> Any:
    """Return the recipe. Raises: ImportError if this version has no TLS."""
    plain = {"tcp": TCP, "udp": UDP}[name]("127.0.0.1", 0)
    if not certificate:
        return plain
    from socketkit import TLS, Layered

    return Layered(plain, TLS(*certificate))


kind, wanted, chosen, *certificate = sys.argv[1:]  # no `if __name__`: no interpreter or process imports the main file again
with Server(transport(kind, *certificate), handler(socketkit, wanted), dispatcher=dispatcher(chosen)) as server:
    print("port", server.addresses[0][1])
    server.serve_forever()
