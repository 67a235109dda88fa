"""``classic MODULE CLASS HANDLER``: a server class of `socketserver`, or of `socketkit.socketserver`.

The accept queue is as long as a composed server's: five, the classic length, would measure lost SYN packets.
"""

from __future__ import annotations

import sys
from importlib import import_module

from .handlers import handler

module, name, wanted = sys.argv[1:]
base = import_module(module)
kind = getattr(base, name)
kind.request_queue_size = 1024
with kind(("127.0.0.1", 0), handler(base, wanted)) as server:
    print("port", server.server_address[1])
    server.serve_forever()
