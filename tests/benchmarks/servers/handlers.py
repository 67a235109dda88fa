"""The handlers: one source, on the base classes of whichever module is given."""

from __future__ import annotations

import itertools
import time
from types import ModuleType
from typing import Any

PONG = b"+PONG\r\n"

SLEEP_EVERY, SLEEP = 100, 0.1
"""One datagram in so many keeps its handler for so many seconds."""


def handlers(base: ModuleType) -> dict[str, Any]:
    """Return the handler classes by name; base: `socketserver`, or what takes its place."""

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
        """The same, but sleeps now and then."""

        counter = itertools.count(1)

        def handle(self) -> None:
            if next(self.counter) % SLEEP_EVERY == 0:
                time.sleep(SLEEP)
            super().handle()

    return {"oneshot": OneShot, "loop": Loop, "datagram": Datagram, "sleepy": Sleepy, "conversation": _conversation()}


def _conversation() -> Any:
    """Return the handler that answers a line at a time and can be left alone in between; it runs under any server class."""
    from socketkit.handlers import ConversationHandler

    class Conversation(ConversationHandler):
        def handle_one_request(self) -> None:
            self.rfile.readline()
            self.wfile.write(PONG)

    return Conversation
