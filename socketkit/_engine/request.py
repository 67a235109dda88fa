"""An accepted request as a unit of work: calling it runs it, and it is its own ledger entry."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from socketkit._engine.ledger import Entry
from socketkit._system.forking import forks, leave

if TYPE_CHECKING:
    from socketkit._engine.sources import RequestSource
    from socketkit.seams import Address, Request


class RequestUnit(Entry):
    """A request that runs in one piece, from verification to close."""

    __slots__ = ("_source",)

    begun: Any = False
    """Whether its handler has already seen it, so that it is too late to refuse it."""

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

    def __call__(self) -> None:
        """Run it in this thread, or hand it to the dispatcher.

        It goes through the template's steps one by one, or straight to the handler where that makes no difference.
        """
        source = self._source
        server = source.server
        if not source.goes_straight():
            server._run_request(self.request, self.client_address)  # noqa: SLF001 - a server and its units form one unit
            return
        self.thread = threading.get_ident()
        try:
            server.RequestHandlerClass(self.request, self.client_address, server)
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
        else:
            self._close()

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        """Refuse the request instead of running it."""
        self._source.server._refuse_request(self.request, self.client_address, reason, reply)  # noqa: SLF001 - as above

    # inside

    def _fail(self, error: BaseException) -> None:
        """Handle `error`, the exception being handled, as the template does, and close."""
        source = self._source
        server = source.server
        if isinstance(error, SystemExit) and forks.behind != source.behind:
            leave(error)
        try:
            source.ledger.fail(self.request, error)
            if isinstance(error, Exception):
                server.handle_error(self.request, self.client_address)
            elif not server._confines_error(error):  # noqa: SLF001 - as above
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
