"""``streams asyncio|uvloop oneshot|loop``: asyncio streams, as in their documentation."""

from __future__ import annotations

import asyncio
import contextlib
import sys

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


async def main(handle: str) -> None:
    """Serve."""
    server = await asyncio.start_server({"oneshot": oneshot, "loop": loop}[handle], "127.0.0.1", 0, backlog=1024)
    print("port", server.sockets[0].getsockname()[1])
    await server.serve_forever()


kind, handle = sys.argv[1:]
if kind == "uvloop":
    import uvloop

    uvloop.run(main(handle))
else:
    asyncio.run(main(handle))
