"""Handlers that answer one line at a time and can be parked in between; they run under any server class.

Only their servers import this module, because each fork of a standard library server would otherwise pay for socketkit's imports.
"""

from __future__ import annotations

from socketkit.handlers.conversation import ConversationHandler

from .handlers import PONG

STEPS = 12_000
"""How many steps `Computing` makes: about a millisecond's worth on the machine of the measurements."""


class Conversation(ConversationHandler):
    """Answers a line."""

    def handle_one_request(self) -> None:
        self.rfile.readline()
        self.wfile.write(PONG)


class Computing(ConversationHandler):
    """Computes in Python before it answers a line."""

    def handle_one_request(self) -> None:
        self.rfile.readline()
        total = 0
        for number in range(STEPS):
            total += number * number & 7
        self.wfile.write(PONG)
