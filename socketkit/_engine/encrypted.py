"""Listeners of classic servers that are sockets with TLS: the handshake happens where the handler runs, not in the accept."""

from __future__ import annotations

from typing import Any

from socketkit._system.tls import TLSHandshake, is_encrypted
from socketkit.seams import Address, Handshake, Request


def shakes_hands(listener: Any) -> bool:
    """Return whether connections of the listener are to have shaken hands before a handler sees them."""
    return is_encrypted(listener) and listener.do_handshake_on_connect


class ListenerTLS:
    """A layer for connections of a listener with TLS."""

    def begin(self, request: Request, client_address: Address) -> Handshake:
        return TLSHandshake(request, client_address)
