"""What every server does with a request, composed or classic: the part of the template methods that both share."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from socketkit._engine.ledger import books
from socketkit._system.forking import forks, leave
from socketkit._system.logs import Log
from socketkit._system.sockets import DONT_WAIT, discard_unread
from socketkit.seams import Address, Request

log = Log("socketkit.template")

STEPS = frozenset({"verify_request", "process_request", "process_request_thread", "finish_request"})
"""What a request goes through on its way to its handler."""

_own_steps: list[Any] = []

Function = TypeVar("Function", bound=Callable[..., Any])


def own_step(function: Function) -> Function:
    """Mark a step as the library's own. A server all of whose steps are marked may run its requests in one go."""
    _own_steps.append(function)
    return function


def replaced_steps(server: RequestTemplate) -> frozenset[str]:
    """Return the names of the steps that the server's class overrides."""
    kind: Any = type(server)
    return _replaced_steps(kind)


@lru_cache(maxsize=256)  # bounded, for programs that make classes as they go
def _replaced_steps(kind: type) -> frozenset[str]:
    return frozenset(step for step in STEPS if not any(getattr(kind, step) is own for own in _own_steps))


class RequestTemplate:
    """The steps of a request after it was taken. Names without an underscore are the standard library's and meant for overriding.

    Subclasses say what `process_request`, `shutdown_request`, `close_request` and `handle_error` do.
    """

    RequestHandlerClass: Any
    process_request: Any
    shutdown_request: Any
    close_request: Any
    handle_error: Any

    _discards_unread = False
    """Whether what a client has sent and nobody has read is thrown away before its connection is closed."""

    @own_step
    def verify_request(self, request: Request, client_address: Address) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to go on with the request. An exception says no, and goes to `handle_error`."""
        return True

    @own_step
    def process_request_thread(self, request: Request, client_address: Address) -> None:
        """Run the request where it stands: handler, errors, close. Called in the thread or process that the dispatcher chose."""
        behind = forks.behind
        try:
            self.finish_request(request, client_address)
        except SystemExit as error:
            if forks.behind != behind:
                leave(error)
            raise
        except Exception as error:  # noqa: BLE001 - that is what handle_error is for
            books(self).fail(request, error)
            self.handle_error(request, client_address)
        finally:
            self._end_request(request)

    @own_step
    def finish_request(self, request: Request, client_address: Address) -> None:
        """Call the handler."""
        self.RequestHandlerClass(request, client_address, self)

    def handle_timeout(self) -> None:
        """Do nothing; `handle_request` calls this when no request came in time."""

    def service_actions(self) -> None:
        """Do nothing; the serving loop calls this after every turn, and at least every `poll_interval` seconds."""

    def _begin_request(self, request: Request, client_address: Address) -> None:
        """Take a request from acceptance to its outcome, or to the dispatcher that will see to that."""
        books(self).admit(request, client_address)
        self._run_request(request, client_address)

    def _run_request(self, request: Request, client_address: Address) -> None:
        """The same for a request whose entry is open."""
        ledger = books(self)
        entry = ledger.find(request) or ledger.admit(request, client_address)
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                ledger.refuse(request, "verify_request said no")
                self._end_request(request)
        except BaseException as error:  # noqa: BLE001 - a request's error is judged here, whatever it is
            entry.elsewhere = False  # nobody took it
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
        """Close it, and keep what its peer has yet to receive safe if the server does that."""
        if self._discards_unread and not isinstance(request, tuple):
            discard_unread(request)
        self.shutdown_request(request)

    def _refuse_request(self, request: Request, client_address: Address, reason: str, reply: bytes = b"") -> None:
        """Turn the request away before a handler sees it, with a last word if there is one; never waits for the peer."""
        ledger = books(self)
        if ledger.find(request) is None:
            ledger.admit(request, client_address)
        ledger.refuse(request, reason)
        try:
            with contextlib.suppress(OSError):  # a full buffer, or nobody there
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
        """Return whether an error that is no `Exception` ends only the request it came from; log it if so.

        All do, but for a Ctrl-C that nobody handles: that one is the user's.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            return False
        log.error("a handler raised %s; only its request ended", type(error).__name__, error=error)
        return True
