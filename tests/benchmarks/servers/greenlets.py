"""``greenlets datagram|oneshot|loop``: gevent's own servers."""

from __future__ import annotations

import sys
from typing import Any

from gevent.server import DatagramServer, StreamServer

from .handlers import PONG


class Datagrams(DatagramServer):
    """Sends each datagram back."""

    def handle(self, data: bytes, address: Any) -> None:
        self.socket.sendto(data, address)


def oneshot(connection: Any, _address: Any) -> None:
    """Answer one line."""
    with connection.makefile("rb") as rfile:
        rfile.readline()
        connection.sendall(PONG)


def loop(connection: Any, _address: Any) -> None:
    """Answer every line."""
    with connection.makefile("rb") as rfile:
        for _line in rfile:
            connection.sendall(PONG)


where = ("127.0.0.1", 0)
handle = sys.argv[1]
server = Datagrams(where) if handle == "datagram" else StreamServer(where, {"oneshot": oneshot, "loop": loop}[handle], backlog=1024)
server.start()
print("port", server.socket.getsockname()[1])
server.serve_forever()
