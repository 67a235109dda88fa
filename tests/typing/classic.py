"""The classic names, as a type checker sees them. Checked by mypy, never run."""

from __future__ import annotations

import socket
from io import BytesIO
from typing import assert_type

from socketkit import socketserver
from socketkit.socketserver import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    ForkingMixIn,
    TCPServer,
    ThreadingMixIn,
    ThreadingTCPServer,
    UDPServer,
)


class Answer(DatagramRequestHandler):
    def handle(self) -> None:
        assert_type(self.packet, bytes)
        assert_type(self.rfile, BytesIO)
        self.wfile.write(self.packet)


class Threaded(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    address_family = socket.AF_INET6
    request_queue_size = 100


class Forking(ForkingMixIn, UDPServer):
    max_children = 5


def factory(request: object, client_address: object, server: object) -> BaseRequestHandler:
    return BaseRequestHandler(request, client_address, server)


threaded = Threaded(("::1", 0), BaseRequestHandler)
base: BaseServer = threaded
UDPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
ThreadingTCPServer(("127.0.0.1", 0), factory)
assert_type(threaded.verify_request(None, None), bool)
assert_type(threaded.fileno(), int)
assert_type(threaded.block_on_close, bool)
assert_type(Forking.max_children, int)
threaded.serve_forever(poll_interval=0.1)
socketserver.ThreadingUDPServer(("127.0.0.1", 0), Answer).serve_forever()

TCPServer(("127.0.0.1", 0))  # type: ignore[call-arg]
threaded.serve_forever("soon")  # type: ignore[arg-type]
