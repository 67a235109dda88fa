"""``classic MODULE CLASS HANDLER [listener|thread CERTIFICATE]``: a server class of `socketserver`, or of `socketkit.socketserver`.

With a certificate it uses TLS: either its listener is wrapped, or the thread of each handler wraps its connection.

The accept queue is as long as a composed server's: five, the classic length, would measure lost SYN packets.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from .handlers import handler

module, name, wanted, *tls = sys.argv[1:]
base = import_module(module)
kind = getattr(base, name)


class WrapsInThread(kind):  # type: ignore[misc, valid-type]
    """A server whose threads make the handshakes."""

    encrypt: Any = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.encrypt(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)


if tls[:1] == ["thread"]:
    kind = WrapsInThread
kind.request_queue_size = 1024
with kind(("127.0.0.1", 0), handler(base, wanted)) as server:
    if tls:
        from .certificates import context

        where, certificate = tls
        encrypt = context(certificate).wrap_socket
        if where == "listener":
            server.socket = encrypt(server.socket, server_side=True)
        else:
            server.encrypt = encrypt
    print("port", server.server_address[1])
    server.serve_forever()
