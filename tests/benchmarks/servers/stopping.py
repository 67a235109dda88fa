"""``stopping socketserver|socketkit``: starts a hundred servers one after another, sends each a request, and times its stop.

Prints a JSON list of seconds.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
from typing import Any

import socketkit
from socketkit.dispatchers.adaptive import Adaptive

from .handlers import handler

TIMES = 100


def ask(address: Any) -> None:
    """Send one request, to make sure that the server serves."""
    with socket.create_connection(address) as connection:
        connection.sendall(b"PING\r\n")
        connection.recv(64)


def classic() -> float:
    """Stop a `ThreadingTCPServer`."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler(socketserver, "oneshot")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        ask(server.server_address)
        began = time.monotonic()
        server.shutdown()
        thread.join()
        return time.monotonic() - began


def composed() -> float:
    """Stop a composed server."""
    with socketkit.Server(socketkit.TCP("127.0.0.1", 0), handler(socketkit, "oneshot"), dispatcher=Adaptive()).start() as server:
        ask(server.addresses[0])
        began = time.monotonic()
        server.stop()
        return time.monotonic() - began


stop = {"socketserver": classic, "socketkit": composed}[sys.argv[1]]
print(json.dumps([stop() for _ in range(TIMES)]))
