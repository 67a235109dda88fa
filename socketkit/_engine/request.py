"""A request that was accepted, as a unit of work: calling it runs it, and it is its own entry in the books."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from socketkit._engine.ledger import Entry, books
from socketkit._engine.steps import STEPS, replaced_steps
from socketkit._system.forking import forks, leave

if TYPE_CHECKING:
    from socketkit._engine.deadlines import Deadlines
    from socketkit._engine.intake import Intake
    from socketkit._engine.steps import RequestTemplate
    from socketkit.seams import Address, Layer, Request
    from socketkit.seams.parking import Parking


class Reception:
    """Where requests come in, one listener of one server: what all the units made there share.

    parking: how its connections wait without a thread; None: not at all. layers: what each request passes through first.
    """

    intake: Intake  # set when there is one
    deadlines: Deadlines | None = None  # for its connections, if there are any

    def __init__(self, server: RequestTemplate, parking: Parking | None, layers: tuple[Layer, ...] = ()) -> None:
        self.server = server
        self.ledger = books(server)
        self.parking = parking
        self.layers = layers
        self.behind = forks.behind
        # Only dispatchers that park run a unit in the thread that took it; the others' `process_request` hands it on.
        self._straight = parking is not None and not layers and not replaced_steps(server)

    def goes_straight(self) -> bool:
        """Return whether nothing stands between a request and its handler: no layer, and no template step that is the program's."""
        return self._straight and self.server.__dict__.keys().isdisjoint(STEPS)


class Whole(Entry):
    """A request that runs in one piece, from verification to close."""

    __slots__ = ("_reception",)

    begun: Any = False
    """Whether its handler has seen it already: too late to turn it away."""

    def __init__(self, reception: Reception, request: Request, client_address: Address) -> None:
        self._reception = reception
        self.request = request
        self.client_address = client_address
        self.since = self.began = reception.ledger.clock()
        self.heard = False
        self.thread = None
        self.outcome = "finished"
        self.elsewhere = False
        self.layers = reception.layers

    def __call__(self) -> None:
        """Run it, in this thread, or have the dispatcher run it where it wants to.

        It goes through the steps of the template one by one, or all at once where that makes no difference.
        """
        reception = self._reception
        server = reception.server
        if not reception.goes_straight():
            server._run_request(self.request, self.client_address)  # noqa: SLF001 - a server and its units are one thing in two files
            return
        self.thread = threading.get_ident()
        try:
            server.RequestHandlerClass(self.request, self.client_address, server)
        except BaseException as error:  # noqa: BLE001 - a request's error is judged in one place, whatever it is
            self._fail(error)
        else:
            self._close()

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        """Turn the request away instead of running it."""
        self._reception.server._refuse_request(self.request, self.client_address, reason, reply)  # noqa: SLF001 - as above

    # inside

    def _fail(self, error: BaseException) -> None:
        """Do with the exception being handled what the template does with it, and close."""
        reception = self._reception
        server = reception.server
        if isinstance(error, SystemExit) and forks.behind != reception.behind:
            leave(error)
        try:
            reception.ledger.fail(self.request, error)
            if isinstance(error, Exception):
                server.handle_error(self.request, self.client_address)
            elif not server._confines_error(error):  # noqa: SLF001 - as above
                raise error
        finally:
            del error  # or its traceback keeps this frame, and with it the request, until the garbage collector comes
            self._close()

    def _close(self) -> None:
        reception = self._reception
        try:
            reception.server.shutdown_request(self.request)
        except BaseException as error:
            reception.ledger.fail(self.request, error)
            raise
        finally:
            reception.ledger.settle(self.request)
