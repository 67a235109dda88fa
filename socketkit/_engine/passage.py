"""A connection's way through the layers of its transport, before its handler sees it."""

from __future__ import annotations

from socketkit._system.sockets import until_ready

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.ledger import Entry, Ledger
    from socketkit._engine.work import StartedDispatcher
    from socketkit.seams import Address, Handshake, Request


class Passage:
    """The way of one connection. Used by one thread at a time.

    A layer without `begin` blocks in `go_on`; any other layer never does.

    live: waits for the client and adapts what layers return, if it has these powers.
    left: the number of layers at the end that are left for somebody else to pass.
    """

    __slots__ = ("_adapt", "_adapted", "_entry", "_handshake", "_ledger", "_left", "_timeout", "_until_ready")

    def __init__(self, entry: Entry, ledger: Ledger, live: StartedDispatcher | None = None, *, left: int = 0) -> None:
        self._entry = entry
        self._ledger = ledger
        self._left = left
        self._until_ready = until_ready if live is None else live.until_ready
        self._adapt = None if live is None else live.adapt
        self._adapted = entry.request  # what the dispatcher has seen
        self._handshake: Handshake | None = None
        self._timeout: float | None = None  # of the request, outside of handshakes

    @property
    def sends(self) -> bool:
        """Whether it waits until the connection can send, not until it can receive."""
        return self._handshake is not None and self._handshake.sends

    def go_on(self) -> bool:
        """Pass all layers that can be passed without waiting; return whether these were all.

        Raises: what a layer raises; TurnedAwayError if a limit for peers turns the client away that a layer has named.
        """
        entry = self._entry
        while len(entry.layers) > self._left:
            if entry.is_cut:  # a deadline passed while the request was being replaced, so its shutdown may not have worked
                raise TimeoutError("the time for the handshake is over")
            layer: Any = entry.layers[0]
            if hasattr(layer, "begin"):
                client_address = self._go_on(self._handshake or self._begin(layer))
                if client_address is None:
                    return False
            else:
                request, client_address = layer.wrap(entry.request, entry.client_address)
                self._replace(request)
            if self._adapt is not None and entry.request is not self._adapted:
                self._replace(self._adapt(entry.request))
                self._adapted = entry.request
            entry.client_address, entry.layers = client_address, entry.layers[1:]
            if getattr(layer, "names_client", False) and entry.is_named:
                self._ledger.name(entry)
        if not entry.layers:
            entry.begin_after_layers(self._ledger.clock())
        return True

    def complete(self, seconds: float | None = None, *, in_all: bool = False) -> bool:
        """Pass all layers; return whether that took no wait of more than `seconds` for the client (None: wait for ever).

        in_all: whether the bound is on all together, from now on.
        """
        clock = self._ledger.clock
        end = clock() + seconds if in_all and seconds is not None else None
        while not self.go_on():
            left = seconds if end is None else end - clock()
            if (left is not None and left <= 0) or not self._until_ready(self._entry.request, left, sends=self.sends):
                return False
        return True

    def _begin(self, layer: Any) -> Handshake:
        request = self._entry.request
        self._timeout = request.gettimeout()
        request.settimeout(0)
        self._handshake = layer.begin(request, self._entry.client_address)
        return self._handshake

    def _go_on(self, handshake: Handshake) -> Address | None:
        try:
            client_address = handshake.go_on()
        finally:
            self._replace(handshake.request)  # even if it failed: the server closes what there is now
        if client_address is not None:
            handshake.request.settimeout(self._timeout)
            self._handshake = None
        return client_address

    def _replace(self, request: Request) -> None:
        if request is not self._entry.request:
            self._ledger.replace(self._entry.request, request)
