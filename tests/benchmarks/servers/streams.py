"""``streams asyncio|uvloop HANDLER [CERTIFICATE]``: asyncio streams, as in their documentation, with TLS if there is a certificate.

HANDLER is oneshot, loop, or a folder of pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from .handlers import PONG


async def oneshot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one line."""
    with contextlib.suppress(ConnectionError):
        await reader.readline()
        writer.write(PONG)
        await writer.drain()
    writer.close()


async def loop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every line."""
    with contextlib.suppress(ConnectionError):
        while await reader.readline():
            writer.write(PONG)
            await writer.drain()
    writer.close()


async def pages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a file for every HTTP request, and parse no more than its path."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            body = (FOLDER / request.split()[1].decode().lstrip("/")).read_bytes()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    writer.close()


async def main() -> None:
    """Serve."""
    encryption = None
    if certificate:
        from .certificates import context

        encryption = context(*certificate)
    handle = {"oneshot": oneshot, "loop": loop}.get(wanted, pages)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024, ssl=encryption)
    print("port", server.sockets[0].getsockname()[1])
    await server.serve_forever()


kind, wanted, *certificate = sys.argv[1:]
FOLDER = Path(wanted)
if kind == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
