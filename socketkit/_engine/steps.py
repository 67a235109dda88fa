"""The request steps that composed and classic servers share, as template methods."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from socketkit._system.forking import forks, leave
from socketkit._system.logs import Log
from socketkit._system.sockets import DONT_WAIT, discard_unread
from socketkit.seams import Address, Request

if TYPE_CHECKING:
    from socketkit._engine.engine import Engine

log = Log("socketkit.template")

STEPS = frozenset({"verify_request", "process_request", "process_request_thread", "finish_request"})
"""The steps that a request goes through on its way to its handler."""

_own_steps: list[Any] = []

Function = TypeVar("Function", bound=Callable[..., Any])


def own_step(function: Function) -> Function:
    """Mark a step as the library's own. A server whose steps are all marked may run its requests without calling them."""
    _own_steps.append(function)
    return function


def replaced_steps(server: RequestTemplate) -> frozenset[str]:
    """Return the names of the steps that the server's class overrides."""
    kind: Any = type(server)
    return _replaced_steps(kind)


@lru_cache(maxsize=256)  # bounded, for programs that create classes dynamically
def _replaced_steps(kind: type) -> frozenset[str]:
    return frozenset(step for step in STEPS if not any(getattr(kind, step) is own for own in _own_steps))


def replaces(server: RequestTemplate, method: str) -> bool:
    """Return whether the server's class overrides this one of the methods that are marked as the library's own."""
    return not any(getattr(type(server), method) is own for own in _own_steps)


class RequestTemplate:
    """The steps of a request after its accept. Names without an underscore come from the standard library and may be overridden.

    Subclasses define `process_request`, `shutdown_request`, `close_request` and `handle_error`.
    """

    RequestHandlerClass: Any
    process_request: Any
    shutdown_request: Any
    close_request: Any
    handle_error: Any

    _make_engine: Any  # returns the server's engine; called by `engine_of`

    _discards_unread = False
    """Whether unread bytes from the client are discarded before its connection is closed."""

    @own_step
    def verify_request(self, request: Request, client_address: Address) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to serve the request. If it raises, the request ends and `handle_error` is called."""
        return True

    @own_step
    def process_request_thread(self, request: Request, client_address: Address) -> None:
        """Run the request here: handler, errors, close. Called in the thread or process that the dispatcher chose."""
        behind = forks.behind
        try:
            self.finish_request(request, client_address)
        except SystemExit as error:
            if forks.behind != behind:
                leave(error)
            raise
        except Exception as error:  # noqa: BLE001 - passed to handle_error
            engine_of(self).ledger.fail(request, error)
            self.handle_error(request, client_address)
        finally:
            self._end_request(request)

    @own_step
    def finish_request(self, request: Request, client_address: Address) -> None:
        """Call the handler."""
        self.RequestHandlerClass(request, client_address, self)

    def handle_timeout(self) -> None:
        """Do nothing; `handle_request` calls this when no request arrived in time."""

    @own_step
    def service_actions(self) -> None:
        """Do nothing; the serving loop calls this after every turn, and at least every `poll_interval` seconds."""

    def _begin_request(self, request: Request, client_address: Address) -> None:
        """Admit a request and run it to its outcome, or hand it to the dispatcher, which will settle it."""
        engine_of(self).ledger.admit(request, client_address)
        self._run_request(request, client_address)

    def _run_request(self, request: Request, client_address: Address) -> None:
        """Do the same as `_begin_request` for a request whose entry is already open."""
        ledger = engine_of(self).ledger
        entry = ledger.find(request) or ledger.admit(request, client_address)
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                ledger.refuse(request, "verify_request said no")
                self._end_request(request)
        except BaseException as error:  # noqa: BLE001 - every error of a request is judged here
            entry.elsewhere = False  # no dispatcher took it
            ledger.fail(request, error)
            try:
                if isinstance(error, Exception):
                    self.handle_error(request, client_address)
                elif not self._confines_error(error):
                    raise
            finally:
                self._end_request(request)
        finally:
            if not entry.elsewhere:
                ledger.settle(request)

    def _end_request(self, request: Request) -> None:
        """Close the request, after discarding unread bytes if the server does so, which protects the rest of the reply."""
        if self._discards_unread and not isinstance(request, tuple):
            discard_unread(request)
        self.shutdown_request(request)

    def _refuse_request(self, request: Request, client_address: Address, reason: str, reply: bytes = b"") -> None:
        """Refuse the request before a handler sees it, and send `reply` unless it is empty; never waits for the peer."""
        ledger = engine_of(self).ledger
        if ledger.find(request) is None:
            ledger.admit(request, client_address)
        ledger.refuse(request, reason)
        try:
            with contextlib.suppress(OSError):  # the buffer is full, or the peer has gone
                if reply and isinstance(request, tuple):
                    request[1].sendto(reply, DONT_WAIT, client_address)
                elif reply:
                    request.send(reply, DONT_WAIT)
            if not isinstance(request, tuple):
                discard_unread(request)
            self.shutdown_request(request)
        finally:
            ledger.settle(request)

    def _confines_error(self, error: BaseException) -> bool:
        """Return whether an error that is not an `Exception` ends only its own request; log it if so.

        All do, except Ctrl-C in the main thread with Python's default handler: that one is meant to end the program.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            return False
        log.error("a handler raised %s; only its request ended", type(error).__name__, error=error)
        return True


ENGINE = "_socketkit_engine"
"""The instance attribute that holds a server's engine; its name is unlikely to clash with a program's own."""


def engine_of(server: RequestTemplate) -> Engine:
    """Return the server's engine, created on first use: some programs never call a server's constructor."""
    attributes = vars(server)
    engine: Engine | None = attributes.get(ENGINE)
    if engine is None:
        engine = attributes.setdefault(ENGINE, server._make_engine())  # noqa: SLF001 - a server and its engine form one unit
    return engine
