"""Listeners of classic servers that are sockets with TLS: the handshake happens where the handler runs, not in the accept."""

from __future__ import annotations

from socketkit._system.tls import TLSHandshake

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.seams import Address, Handshake, Request


class ListenerTLS:
    """A layer for connections of a listener with TLS."""

    def begin(self, request: Request, client_address: Address) -> Handshake:
        return TLSHandshake(request, client_address)
