"""``composed TRANSPORT HANDLER DISPATCHER``: a `socketkit.Server` of parts."""

from __future__ import annotations

import os
import sys
from typing import Any

import socketkit
from socketkit import TCP, UDP, Server
from socketkit.dispatchers.adaptive import Adaptive

from .handlers import handler


def dispatcher(name: str) -> Any:
    """Return the recipe. Raises: ImportError if this version has no such dispatcher."""
    if name == "prefork":
        from socketkit.dispatchers.prefork import Prefork

        return Prefork(os.cpu_count() or 1, inner=Adaptive())
    return {"adaptive": Adaptive}[name]()


transport, wanted, chosen = sys.argv[1:]
kind = {"tcp": TCP, "udp": UDP}[transport]
with Server(kind("127.0.0.1", 0), handler(socketkit, wanted), dispatcher=dispatcher(chosen)) as server:
    print("port", server.addresses[0][1])
    server.serve_forever()
