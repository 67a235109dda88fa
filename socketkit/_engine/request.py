"""What happens to each accepted request, from verification to its outcome."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable

from socketkit._engine.accepting import TurnedAwayError
from socketkit._engine.ledger import Entry, Ledger
from socketkit._engine.passage import Passage
from socketkit._system.forking import leave_if_forked
from socketkit._system.logs import Log
from socketkit._system.sockets import DONT_WAIT, cut_off, discard_unread, is_open
from socketkit.errors import UpgradeError
from socketkit.seams.answered import Answered
from socketkit.seams.events import Refusal

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.sources import RequestSource
    from socketkit._engine.work import StartedDispatcher
    from socketkit.seams import Address, Layer, Request, ShakesHands

log = Log("socketkit.template")

STOPPED_EARLY = Refusal("the server stopped before the handshake was over", "stop")
"""The reason for refusing a connection in its layers."""

NOT_VERIFIED = Refusal("verify_request returned false", "verify_request")


class Requests:
    """The requests of one server, on their way through its template methods.

    Attributes:
        discards_unread: whether unread bytes from the client are discarded before its connection is closed, which protects the rest
            of the reply.
    """

    server: Any
    ledger: Ledger
    live: StartedDispatcher | None
    discards_unread = True

    @property
    def is_interruptible(self) -> bool:
        """Whether Ctrl-C in the serving thread ends the requests that run: in the standard library they would run in that thread."""
        return False

    def begin_request(self, request: Request, client_address: Address) -> None:
        """Admit a request and run it to its outcome, or hand it to the dispatcher, which will settle it."""
        self.ledger.admit(request, client_address)
        self.run_request(request, client_address)

    def run_request(self, request: Request, client_address: Address, *, verified: bool = False) -> None:
        """Do the same as `begin_request` for a request whose entry is already open. verified: `verify_request` has returned true."""
        server, ledger = self.server, self.ledger
        entry = ledger.find(request) or ledger.admit(request, client_address)
        try:
            if verified or server.verify_request(request, client_address):
                server.process_request(request, client_address)
            else:
                ledger.refuse(request, NOT_VERIFIED)
                self.end_request(request)
        except BaseException as error:  # noqa: BLE001 - every error of a request is judged here
            if entry.elsewhere and self.is_interruptible and not isinstance(error, Exception):
                with contextlib.suppress(Exception):  # a datagram has no socket; a connection may be closed by now
                    cut_off(entry.request)  # a Ctrl-C on its way to the dispatcher, where it may have begun to wait for its client
            entry.elsewhere = False  # no dispatcher took it, as far as is known
            try:
                if self.fail_request(entry.request, client_address, error):
                    raise
            finally:
                self.end_request(entry.request)
        finally:
            if not (entry.elsewhere or (entry.layers and is_open(entry.request))):  # a thread of the server's own may pass them later
                ledger.settle(entry.request)

    def enter_handler(self, entry: Entry | None, *, again: bool = False) -> Callable[..., None] | None:
        """Tell the observers that this thread is about to run the handler of a request, in its context.

        again: whether its connection was parked before. Return what tells them that the handler was left: with `parked=True` if it
        will be entered again, otherwise after its failure is recorded, if there is one. Return None if no observer asks.
        """
        observers, clock = self.ledger.observers, self.ledger.clock
        if entry is None or not observers.watch_handlers:
            return None
        began = clock()
        observers.tell("handler_entered", self.server, entry.request, entry.client_address, None if again else began - entry.since)

        def leave(*, parked: bool = False) -> None:
            outcome = None if parked else entry.outcome
            observers.tell("handler_left", self.server, entry.client_address, outcome, clock() - began)

        return leave

    def fail_request(self, request: Request, client_address: Address, error: BaseException) -> bool:
        """Record `error`, the exception being handled, and have the server handle it; return whether to raise it."""
        if isinstance(error, UpgradeError):
            return False  # `pass_layer` has recorded why
        self.ledger.fail(request, error)
        if isinstance(error, Exception):
            self.server.handle_error(request, client_address)
            return False
        return not self.confines(error)

    def confines(self, error: BaseException) -> bool:
        """Return whether an error that is not an `Exception` ends only its own request; log it if so.

        All do, except Ctrl-C in the main thread with Python's default handler: that one is meant to end the program.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            return False
        log.error("a handler raised %s; only its request ended", type(error).__name__, error=error)
        return True

    def pass_layers(self, entry: Entry) -> bool:
        """Pass the connection through its layers, in this thread; return False if one of them has ended it."""
        try:
            Passage(entry, self.ledger, self.live).complete()
        except Exception as error:  # noqa: BLE001 - a layer is a plug-in fed by a peer: its errors end that connection only
            self.fail_in_layer(entry, error)
            return False
        return True

    def pass_layer(self, request: Request, layer: Layer | ShakesHands | None, objection: str) -> Request | None:
        """Pass a connection whose handler runs through one more layer, in this thread; return the request that takes its place.

        layer: None: the one that the transport leaves to its handlers.
        objection: why the connection has to end instead; "": nothing speaks against it.
        Returns: None, and does nothing, if there is no layer, or no entry in the ledger.
        Raises: UpgradeError, once the connection is shut down and its outcome recorded. It is closed when its handler ends.
        """
        entry = self.ledger.find(request)
        if entry is None or (layer := layer or entry.upgrade) is None:
            return None
        entry.began, entry.layers = self.ledger.clock(), (layer,)
        try:
            self._pass_in_time(entry, objection)
        except Exception as error:
            self.fail_upgrade(entry.request, error)
            discard_unread(entry.request)  # otherwise the close might destroy an alert
            with contextlib.suppress(OSError):  # the client has gone
                cut_off(entry.request)
            raise UpgradeError(str(error)) from error
        finally:
            entry.layers = ()
        return entry.request

    def _pass_in_time(self, entry: Entry, objection: str) -> None:
        """Do what `pass_layer` does. Raises: whatever ends the connection."""
        if objection:
            raise OSError(objection)
        limits = getattr(self.server, "limits", None)  # classic servers have none
        seconds = entry.request.gettimeout() if limits is None else limits.handshake
        if not Passage(entry, self.ledger, self.live).complete(seconds, in_all=True):
            raise TimeoutError(f"the handshake was not over within {seconds:g} s")

    def fail_upgrade(self, request: Request, error: Exception) -> None:
        """Record why a connection is over that its handler has tried to upgrade."""
        entry = self.ledger.find(request)
        if entry is not None and isinstance(error, TimeoutError):
            self.ledger.cut(entry, "handshake", str(error))
        self.ledger.fail(request, error)

    def fail_in_layer(self, entry: Entry, error: Exception) -> None:
        """End a connection in one of its layers, because of `error`: it failed, was answered, or is refused by a stop."""
        if isinstance(error, TurnedAwayError):
            reply = b"" if entry.layers else error.reply  # which the client could take for the next layer's
            self.refuse_request(entry.request, entry.client_address, error.reason, reply)
            return
        if entry.outcome != "refused" and not isinstance(error, Answered):
            log.debug("%s: %s ended the connection: %s", entry.client_address, entry.layers[0], error)
            self.ledger.fail(entry.request, error)
        try:
            self.end_request(entry.request)
        finally:
            self.ledger.settle(entry.request)

    def refuse_request(self, request: Request, client_address: Address, reason: str, reply: bytes = b"") -> None:
        """Refuse the request before a handler sees it, and send `reply` unless it is empty; never waits for the peer."""
        ledger = self.ledger
        if ledger.find(request) is None:
            ledger.admit(request, client_address)
        ledger.refuse(request, reason)
        try:
            with contextlib.suppress(OSError, AttributeError):  # the buffer is full, the peer has gone, or it is no socket
                if reply and isinstance(request, tuple):
                    request[1].sendto(reply, DONT_WAIT, client_address)
                elif reply:
                    request.setblocking(False)  # a socket with TLS takes no flags, and one with a timeout waits in spite of them
                    request.send(reply)
            if not isinstance(request, tuple):
                discard_unread(request)
            self.server.shutdown_request(request)
        finally:
            ledger.settle(request)

    def end_request(self, request: Request) -> None:
        if self.discards_unread and not isinstance(request, tuple):
            discard_unread(request)
        self.server.shutdown_request(request)


class RequestUnit(Entry):
    """An accepted request as a unit of work: calling it runs it in one piece, and it is its own ledger entry."""

    __slots__ = ("_source",)

    begun: Any = False
    """Whether its handler has already seen it, so that it is too late to refuse it."""

    @property
    def upgrade(self) -> Layer | ShakesHands | None:  # type: ignore[override] # a request may have none, and a source always says
        return self._source.upgrade

    def __init__(self, source: RequestSource, request: Request, client_address: Address) -> None:
        self._source = source
        self.request = request
        self.client_address = client_address
        self.since = self.began = source.ledger.clock()
        self.heard = False
        self.thread = None
        self.outcome = "finished"
        self.elsewhere = False
        self.layers = source.layers
        self.preamble = 0

    def __call__(self) -> None:
        """Run it in this thread, or hand it to the dispatcher.

        It goes through the template's steps one by one, or straight to the handler where that makes no difference.
        """
        source = self._source
        server = source.server
        if not source.goes_straight():
            source.engine.run_request(self.request, self.client_address)
            return
        self.thread = threading.get_ident()
        try:
            server.RequestHandlerClass(self.request, self.client_address, server)
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
        else:
            self._close()

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        self._source.engine.refuse_request(self.request, self.client_address, reason, reply if self._source.in_clear else b"")

    # inside

    def _fail(self, error: BaseException) -> None:
        """Handle `error`, the exception being handled, as the template does, and close."""
        source = self._source
        leave_if_forked(error, source.behind)
        try:
            if source.engine.fail_request(self.request, self.client_address, error):
                raise error
        finally:
            del error  # otherwise its traceback keeps this frame and the request alive until garbage collection
            self._close()

    def _close(self) -> None:
        source = self._source
        try:
            source.server.shutdown_request(self.request)
        except BaseException as error:
            source.ledger.fail(self.request, error)
            raise
        finally:
            source.ledger.settle(self.request)
