"""The handlers, built on the base classes of a given module."""

from __future__ import annotations

import itertools
import os
import time
from types import ModuleType
from typing import Any

PONG = b"+PONG\r\n"

SLEEP_EVERY, SLEEP = 100, 0.1
"""One datagram in SLEEP_EVERY makes its handler sleep for SLEEP seconds."""


def handler(base: ModuleType, name: str) -> Any:
    """Return the handler of that name, or `http.server`'s for that folder. base: `socketserver`, or its replacement."""
    if os.sep in name:
        return _pages(name)
    if name in {"conversation", "computing"}:
        from . import conversations

        return getattr(conversations, name.capitalize())
    return _handlers(base)[name]


def _handlers(base: ModuleType) -> dict[str, Any]:

    class OneShot(base.StreamRequestHandler):  # type: ignore[misc, name-defined]
        """Answers one line."""

        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(PONG)

    class Loop(base.StreamRequestHandler):  # type: ignore[misc, name-defined]
        """Answers every line."""

        def handle(self) -> None:
            for _line in self.rfile:
                self.wfile.write(PONG)

    class Datagram(base.DatagramRequestHandler):  # type: ignore[misc, name-defined]
        """Sends the datagram back."""

        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    class Sleepy(Datagram):
        """Sends the datagram back; sleeps at intervals."""

        counter = itertools.count(1)

        def handle(self) -> None:
            if next(self.counter) % SLEEP_EVERY == 0:
                time.sleep(SLEEP)
            super().handle()

    return {"oneshot": OneShot, "loop": Loop, "datagram": Datagram, "sleepy": Sleepy}


def _pages(folder: str) -> Any:
    """Return what ``python -m http.server --protocol HTTP/1.1`` serves the folder with."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler

    class Pages(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

    return partial(Pages, directory=folder)
