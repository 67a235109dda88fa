"""Handlers for several requests in turn on one connection."""

from __future__ import annotations

import socket

from socketkit.handlers.base import StreamRequestHandler


class ConversationHandler(StreamRequestHandler):
    """Handles a connection request by request: override `handle_one_request`.

    Under a dispatcher that parks (pool, adaptive), a connection holds no thread between two requests. Its requests may run in
    different threads, one at a time. Under any other dispatcher, and under the standard library's classes, `handle` loops.

    Attributes:
        close_connection: set it to true in `handle_one_request` to make that request the last.
        is_within_request: for handlers that read a request piece by piece: whether a request was only partly read when
            `handle_one_request` returned. The request then keeps its deadline. May be a property.
    """

    close_connection: bool = False
    is_within_request: bool = False

    def handle(self) -> None:
        """Handle requests until `close_connection` is true or the client sends no more."""
        while not self.close_connection and self.another_request():
            self.handle_one_request()

    def another_request(self) -> bool:
        """Wait for the first byte of another request; return False if the client has closed its side. Consumes no byte."""
        peek = getattr(self.rfile, "peek", None)
        return bool(peek(1) if peek is not None else self.connection.recv(1, socket.MSG_PEEK))

    def handle_one_request(self) -> None:
        """Read one request from `rfile`, where its first byte is ready, and write the reply to `wfile`. Subclasses define this."""
        raise TypeError(f"{type(self).__name__} must define handle_one_request()")
