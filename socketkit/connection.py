"""A stream connection as a unit of work that can be parked: before its first byte, and between the requests of a conversation.

A *conversation* is a handler whose `handle()` is nothing but a loop over `handle_one_request()` until `close_connection`: every
handler of `http.server`, and every `ConversationHandler`. Only such a handler can be left alone between two requests.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from socketkit import handlers
from socketkit.seams import Address, Layer, Request
from socketkit.stats import Ledger, books

if TYPE_CHECKING:
    from socketkit.loop import Intake
    from socketkit.parking import Parking
    from socketkit.template import RequestTemplate

_PEEK = getattr(socket, "MSG_PEEK", 0) | getattr(socket, "MSG_DONTWAIT", 0)


class Whole(partial[None]):
    """A request that runs from verification to close in one piece: `server._begin_request` with all it needs."""

    begun = False

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        """Turn the request away instead of running it."""
        request, client_address, _layers = self.args
        self.func.__self__._refuse_request(request, client_address, reason, reply)  # type: ignore[attr-defined]  # noqa: SLF001 - a bound method


def begin(  # noqa: PLR0913, PLR0917 - what an accepted request needs to become a unit
    server: RequestTemplate,
    intake: Intake,
    parking: Parking | None,
    request: Request,
    client_address: Address,
    layers: tuple[Layer, ...] = (),
) -> Whole | Connection | None:
    """Return the unit of work of a request that was just accepted; None if it was parked for its first byte."""
    if parking is not None and _can_wait(server, request):
        return Connection(server, intake, parking, request, client_address).arrive(layers)
    return Whole(server._begin_request, request, client_address, layers)  # noqa: SLF001 - a server and its units are one thing in two files


class Connection:
    """One accepted connection, from its acceptance to its outcome; calling it runs it as far as it goes without waiting.

    It is in one place at a time: parked, waiting to be taken, or with the one thread that called it.
    """

    __slots__ = ("_fileno", "_handler", "_intake", "_ledger", "_parking", "_server", "client_address", "deadline", "expired", "request")

    def __init__(self, server: RequestTemplate, intake: Intake, parking: Parking, request: Request, client_address: Address) -> None:
        self._server = server
        self._intake = intake
        self._parking = parking
        self._ledger: Ledger = books(server)
        self._handler: Any = None  # once a conversation has begun
        self._fileno: int = request.fileno()
        self.request = request
        self.client_address = client_address
        self.deadline = 0.0
        self.expired = False

    @property
    def begun(self) -> bool:
        """Whether its handler has seen it already: too late to turn it away."""
        return self._handler is not None

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._fileno

    def arrive(self, layers: tuple[Layer, ...]) -> Connection | None:
        """Open its entry in the books; return itself if it can run at once, or None after parking it for its first byte."""
        self._ledger.admit(self.request, self.client_address).layers = layers
        if _first_byte_is_there(self.request):
            return self
        self._park(self._parking.defer)
        return None

    def __call__(self) -> None:
        """Go on, in this thread."""
        if self._handler is not None:
            self._converse()
            return
        entry, opener = self._ledger.find(self.request), _opener(self._server)
        if opener is None or entry is None or entry.layers:
            self._intake.forget(self)
            self._server._run_request(self.request, self.client_address)  # noqa: SLF001 - as above
        else:
            entry.thread = threading.get_ident()
            self._open(opener)

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        """Turn the connection away instead of running it."""
        self._intake.forget(self)
        self._server._refuse_request(self.request, self.client_address, reason, reply)  # noqa: SLF001 - as above

    def abandon(self) -> None:
        """End it where it is parked, because its server stops."""
        self._end()

    # inside

    def _open(self, opener: Callable[..., Any]) -> None:
        """Verify the request, construct the handler without running it, and begin the conversation."""
        server, request = self._server, self.request
        try:
            if not server.verify_request(request, self.client_address):
                self._ledger.refuse(request, "verify_request said no")
                self._close()
                return
            handler = opener(request, self.client_address, server)
            handler.__class__ = type(handler).__base__
        except BaseException:  # noqa: BLE001 - a request's error is judged in one place, whatever it is
            self._failed()
            return
        self._handler = handler
        _watch_buffer(handler)
        if not isinstance(handler, handlers.ConversationHandler):
            handler.close_connection = True  # as http.server's `handle()` has it before the first request
        if self.expired:  # no first byte in time: the handler is set up, and has said what it says unasked
            self._wait_for_request()
        else:
            self._converse()

    def _converse(self) -> None:
        """Serve requests until there is none to read; then park, or end."""
        entry = self._ledger.find(self.request)
        if entry is not None:
            entry.thread = threading.get_ident()
        try:
            over = self.expired or self._serve_requests()
        except BaseException:  # noqa: BLE001 - as above
            with contextlib.suppress(BaseException):  # the first error is the one to report
                self._handler.finish()
            self._failed()
            return
        if over:
            self._end()
            return
        if entry is not None:
            entry.thread = None
        if _has_more(self._handler):
            self._intake.again(self)  # it has had its share; others first
        else:
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        limit = getattr(self._handler, "timeout", None)
        self._park(self._parking.idle if limit is None else limit)

    def _serve_requests(self) -> bool:
        """Serve what can be read without waiting, up to the share of one connection; return whether the conversation is over."""
        handler, intake = self._handler, self._intake
        if isinstance(handler, handlers.ConversationHandler) and not handler.another_request():
            return True
        for _ in range(self._parking.max_inline):
            handler.handle_one_request()
            if handler.close_connection or intake.stopped:
                return True
            if not _has_more(handler):
                break
        return False

    def _park(self, seconds: float | None) -> None:
        intake = self._intake
        try:
            intake.park(self, seconds)
        except (OSError, ValueError):  # closed: the intake because its run is over, or the descriptor by a handler
            if not intake.stopped and self._fileno == self.request.fileno():
                raise
        else:
            if not intake.stopped:
                return
        if intake.unpark(self):  # its run may have emptied the lot just before, and then it is ended already
            self._end()

    def _end(self) -> None:
        """Finish the handler, if there is one, and close."""
        try:
            if self._handler is not None:
                self._handler.finish()
        except BaseException:  # noqa: BLE001 - as above
            self._failed()
        else:
            self._close()

    def _failed(self) -> None:
        """Do with the exception being handled what the template does with it, and close."""
        server, error = self._server, sys.exc_info()[1]
        try:
            if error is not None:
                self._ledger.fail(self.request, error)
            if isinstance(error, Exception):
                server.handle_error(self.request, self.client_address)
            elif error is not None and not server._confines_error(error):  # noqa: SLF001 - as above
                raise error
        finally:
            del error  # or its traceback keeps this frame, and with it the request, until the garbage collector comes
            self._close()

    def _close(self) -> None:
        self._intake.forget(self)
        try:
            self._server.shutdown_request(self.request)
        finally:
            self._ledger.settle(self.request)


def _can_wait(server: RequestTemplate, request: Request) -> bool:
    """Return whether the request may be parked before its first byte: a plain socket, and a client that speaks first."""
    handler = getattr(server.RequestHandlerClass, "func", server.RequestHandlerClass)  # functools.partial has it in func
    return type(request) is socket.socket and not getattr(handler, "speaks_first", False)


def _first_byte_is_there(request: Request) -> bool:
    try:
        request.recv(1, _PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass  # reset already: the handler shall find out
    return True


def _opener(server: RequestTemplate) -> Callable[..., Any] | None:
    """Return what constructs the server's handler without running it; None if it has to run in one piece.

    It has to if it is no conversation, or if the server goes a way of its own between the request and the handler.
    """
    kind: Any = type(server)
    if not _follows_template(kind):
        return None
    factory = server.RequestHandlerClass
    if isinstance(factory, partial):
        inner = _unrun(factory.func) if isinstance(factory.func, type) else None
        return inner and partial(inner, *factory.args, **factory.keywords)
    return _unrun(factory) if isinstance(factory, type) else None


@lru_cache(maxsize=256)  # bounded, for programs that make classes as they go
def _follows_template(kind: type) -> bool:
    steps = ("process_request", "process_request_thread", "finish_request")
    return all(getattr(kind, step).__module__ in _TEMPLATE for step in steps)


_TEMPLATE = frozenset({"socketkit.template", "socketkit.server", "socketkit.socketserver", "socketserver"})


@lru_cache(maxsize=256)  # bounded, for programs that make classes as they go
def _unrun(kind: type) -> type | None:
    """Return a subclass whose constructor only sets up; None if the class is no conversation.

    The constructor of every request handler calls setup, handle and finish. Here the last two do nothing; once constructed, the
    handler is made an instance of `kind` itself.
    """
    if not _is_conversation(kind):
        return None
    return type(kind.__name__, (kind,), {"__slots__": (), "handle": lambda _: None, "finish": lambda _: None, "__module__": __name__})


def _is_conversation(kind: type) -> bool:
    """Return whether `handle()` is one of the known loops over `handle_one_request()`."""
    handle = getattr(kind, "handle", None)
    if handle is handlers.ConversationHandler.handle:
        return True
    http_server = sys.modules.get("http.server")
    return http_server is not None and handle is http_server.BaseHTTPRequestHandler.handle


class _Buffered(socket.SocketIO):
    """The raw file under a conversation's `rfile`, which can be told not to read while somebody looks into the buffer above it."""

    looking = False

    def readinto(self, buffer: Any) -> int | None:
        return None if self.looking else super().readinto(buffer)


def _watch_buffer(handler: Any) -> None:
    rfile = getattr(handler, "rfile", None)
    if type(rfile) is io.BufferedReader and type(rfile.raw) is socket.SocketIO:
        rfile.raw.__class__ = _Buffered


def _has_more(handler: Any) -> bool:
    """Return whether bytes of a next request were read already, and so will never make the descriptor readable."""
    rfile = handler.rfile
    raw = getattr(rfile, "raw", None)
    if type(raw) is _Buffered:
        raw.looking = True
        try:
            if rfile.peek(1):
                return True
        finally:
            raw.looking = False
    pending = getattr(handler.connection, "pending", None)  # TLS keeps decrypted bytes of its own
    return pending is not None and pending() > 0
