"""Handlers that can be suspended between two requests.

A *conversation* is a handler whose `handle()` only loops over `handle_one_request()` until `close_connection`: every handler of
`http.server`, and every `ConversationHandler`.
"""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from socketkit._engine.steps import replaced_steps
from socketkit.handlers.base import unwrapped
from socketkit.handlers.conversation import ConversationHandler
from socketkit.handlers.files import SocketInput, WatchedInput
from socketkit.seams import Request

if TYPE_CHECKING:
    from socketkit._engine.steps import RequestTemplate

GOODBYE = 1.0
"""Seconds after a response in which the client may send one more request, whose response tells it that the connection closes."""

BUFFER = 4096
"""Bytes of a conversation's `rfile` buffer, if the handler sets none. Small, because many parked connections each hold one."""

_CAN_BE_LOOKED_INTO = (SocketInput, WatchedInput)


def can_wait(server: RequestTemplate, request: Request) -> bool:
    """Return whether the request may be parked before its first byte: a plain socket, and a client that speaks first."""
    return type(request) is socket.socket and not getattr(unwrapped(server.RequestHandlerClass), "speaks_first", False)


def opener_of(server: RequestTemplate) -> Callable[..., Any] | None:
    """Return a factory that constructs the server's handler without running it; None if the handler has to run in one piece.

    It has to if it is not a conversation, or if the server overrides a step other than `verify_request`.
    """
    if not replaced_steps(server) <= {"verify_request"}:
        return None
    factory = server.RequestHandlerClass
    if isinstance(factory, partial):
        inner = _unrun(factory.func) if isinstance(factory.func, type) else None
        return inner and partial(inner, *factory.args, **factory.keywords)
    return _unrun(factory) if isinstance(factory, type) else None


@lru_cache(maxsize=256)  # bounded, for programs that create classes dynamically
def _unrun(kind: type) -> type | None:
    """Return a subclass whose constructor only sets up; None if the class is not a conversation.

    The constructor of every request handler calls setup, handle and finish. In the subclass the last two do nothing; once
    constructed, the handler is made an instance of `kind` itself.
    """
    if not _is_conversation(kind):
        return None
    changes: dict[str, Any] = {"__slots__": (), "handle": lambda _: None, "finish": lambda _: None, "__module__": __name__}
    if getattr(kind, "rbufsize", None) == -1:
        changes["rbufsize"] = BUFFER
    return type(kind.__name__, (kind,), changes)


def _is_conversation(kind: type) -> bool:
    """Return whether `handle()` is one of the known loops over `handle_one_request()`."""
    handle = getattr(kind, "handle", None)
    if handle is ConversationHandler.handle:
        return True
    http_server = sys.modules.get("http.server")
    return http_server is not None and handle is http_server.BaseHTTPRequestHandler.handle


def say_goodbye(handler: Any, is_last: Callable[[], bool]) -> bool:
    """Have the handler send `Connection: close` with its last response, if it speaks HTTP; return whether it will.

    Interim responses (100, 101) are left unchanged. Source: RFC 9112, 9.6.
    """
    http_server = sys.modules.get("http.server")
    if http_server is None or not isinstance(handler, http_server.BaseHTTPRequestHandler):
        return False
    end_headers = handler.end_headers

    def end_headers_of_the_last() -> None:
        lines = getattr(handler, "_headers_buffer", None)
        if is_last() and not handler.close_connection and lines and lines[0][9:10] != b"1":
            handler.send_header("Connection", "close")
        end_headers()

    handler.end_headers = end_headers_of_the_last
    return True


def watch_buffer(handler: Any) -> None:
    rfile = getattr(handler, "rfile", None)
    if isinstance(rfile, io.BufferedReader) and type(rfile.raw) is socket.SocketIO:
        rfile.raw.__class__ = WatchedInput


def has_more(handler: Any) -> bool:
    """Return whether bytes of the next request are already buffered, and so will never make the descriptor readable."""
    rfile = handler.rfile
    raw = getattr(rfile, "raw", None)
    if isinstance(raw, _CAN_BE_LOOKED_INTO):
        raw.looking = True
        try:
            if rfile.peek(1):
                return True
        finally:
            raw.looking = False
    if type(handler.connection) is socket.socket:
        return False
    pending = getattr(handler.connection, "pending", None)  # TLS buffers decrypted bytes itself
    return pending is not None and pending() > 0
