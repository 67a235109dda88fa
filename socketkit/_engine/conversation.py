"""Handlers that can be suspended between two requests.

A *conversation* is a handler whose `handle()` only loops over `handle_one_request()` until `close_connection`: every handler of
`http.server`, and every `ConversationHandler`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from types import FunctionType

from socketkit._engine.steps import replaced_steps
from socketkit._system.sockets import has_pending
from socketkit.handlers.base import unwrapped
from socketkit.handlers.conversation import ConversationHandler
from socketkit.handlers.files import has_buffered, input_of

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.steps import RequestTemplate
    from socketkit.seams import Request

GOODBYE = 1.0
"""Seconds after a response in which the client may send one more request, whose response tells it that the connection closes."""

BUFFER = 4096
"""Bytes of a conversation's `rfile` buffer, if the handler sets none. Small, because many parked connections each hold one."""


def can_wait(server: RequestTemplate, request: Request) -> bool:
    """Return whether the request may be parked before its first byte: a plain socket, and a client that speaks first."""
    return type(request) is socket.socket and not getattr(unwrapped(server.RequestHandlerClass), "speaks_first", False)


def opener_of(server: RequestTemplate) -> Callable[..., Any] | None:
    """Return a function that constructs the server's handler without running it; None if the handler has to run in one piece.

    It has to if it is no conversation, or if the server overrides a step other than `verify_request`.
    """
    if not replaced_steps(server) <= {"verify_request"}:
        return None
    factory = server.RequestHandlerClass
    given = isinstance(factory, partial)
    kind = factory.func if given else factory
    if not (isinstance(kind, type) and _can_be_suspended(kind)):
        return None
    return partial(_construct, kind, *factory.args, **factory.keywords) if given else partial(_construct, kind)


def _construct(kind: Any, *arguments: Any, **options: Any) -> Any:
    """Construct a handler whose constructor only sets up: it calls `setup`, and then `handle` and `finish`, which do nothing meanwhile."""
    handler = kind.__new__(kind)
    meanwhile: dict[str, Any] = {"handle": _do_nothing, "finish": _do_nothing}
    if getattr(kind, "rbufsize", None) == -1:
        meanwhile["rbufsize"] = BUFFER
    vars(handler).update(meanwhile)
    handler.__init__(*arguments, **options)  # in place of `kind(...)`, which would make another instance
    for name, value in meanwhile.items():
        if vars(handler).get(name) is value:
            del vars(handler)[name]
    return handler


def _do_nothing() -> None:
    pass


@lru_cache(maxsize=256)  # bounded, for programs that create classes dynamically
def _can_be_suspended(kind: Any) -> bool:
    """Return whether handlers of this class may be constructed first and run later, request by request, in any thread.

    `handle()` has to be one of the known loops over `handle_one_request()`, and nothing of the program's own may surround it: what a
    constructor opens, it may close once `handle` has returned. A `ConversationHandler` is written for this, so it may have a `setup`
    of its own; that of a handler of `http.server` may prepare things that only one thread can use.
    """
    base = _loop_of(kind)
    if base is None or kind.__new__ is not object.__new__ or type(kind).__call__ is not type.__call__ or not kind.__dictoffset__:
        return False
    http_server = sys.modules.get("http.server")
    constructors = [base.__init__, *([http_server.SimpleHTTPRequestHandler.__init__] if http_server else [])]
    return kind.__init__ in constructors and (base is ConversationHandler or kind.setup is base.setup)


def is_conversation(factory: Any) -> bool:
    """Return whether handlers of this class, or of this partial of one, are conversations, even if they have to run in one piece."""
    kind = unwrapped(factory)
    return isinstance(kind, type) and _loop_of(kind) is not None


@lru_cache(maxsize=256)
def _loop_of(kind: Any) -> Any:
    """Return the class whose `handle()` this class has, if that is a known loop over `handle_one_request()`."""
    http_server = sys.modules.get("http.server")
    for base in (ConversationHandler, *([http_server.BaseHTTPRequestHandler] if http_server else [])):
        if getattr(kind, "handle", None) is base.handle:
            return base
    return None


def count_requests(factory: Any, ended: Callable[[Any], None]) -> None:
    """From now on call `ended(handler)` after each request of a conversation with a handler of this class, or of this partial of one.

    This changes the class, so it is only for a process that serves nothing else. Whatever loops over `handle_one_request()`, the
    library or the handler itself, then calls `ended`.
    """
    kind = unwrapped(factory)
    one = getattr(kind, "handle_one_request", None)
    if not (isinstance(kind, type) and isinstance(one, FunctionType)):
        return

    @wraps(one)
    def handle_one_request(handler: Any) -> Any:
        try:
            return one(handler)
        finally:
            if not getattr(handler, "is_within_request", False) and getattr(
                handler, "raw_requestline", True
            ):  # b"": http.server read the end
                ended(handler)

    kind.handle_one_request = handle_one_request  # type: ignore[attr-defined]


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


def has_more(handler: Any, request: Request) -> bool | None:
    """Return whether bytes of the next request are already buffered, and so will never make the descriptor readable.

    None: only the handler knows. It no longer reads the accepted socket, as after STARTTLS or CONNECT, or reads it through a file of
    its own.
    """
    if handler.connection is not request or handler.request is not request:
        return None
    rfile: Any = getattr(handler, "rfile", None)
    raw = input_of(rfile)
    if raw is None or getattr(raw, "_sock", None) is not request:
        return None
    return has_buffered(rfile, raw) or has_pending(request)
