"""``wsgi FOLDER [CERTIFICATE]``: cheroot, with TLS if it has a certificate, and an application that reads and sends a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cheroot.wsgi import Server

folder, *certificate = sys.argv[1:]
FOLDER = Path(folder)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Send a file."""
    body = (FOLDER / environ["PATH_INFO"].lstrip("/")).read_bytes()
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
    return [body]


server = Server(("127.0.0.1", 0), application, request_queue_size=1024)
if certificate:
    from cheroot.ssl.builtin import BuiltinSSLAdapter

    server.ssl_adapter = BuiltinSSLAdapter(*certificate * 2)
server.prepare()
print("port", server.bind_addr[1])
server.serve()
