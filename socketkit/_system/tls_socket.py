"""The socket of an encrypted connection. Importing this imports `ssl`, so import it where TLS is wanted, not at the top of a module."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any


class TLSSocket(ssl.SSLSocket):
    """An encrypted connection that any thread may shut down, and that says goodbye at its end."""

    def shutdown(self, how: int) -> None:
        """Shut down the connection. For the sending side alone, which ends a request, send close_notify before.

        With both sides this may come from another thread than the handler's, so it leaves the TLS object alone: without it, the
        handler would read what is encrypted. Source: Lib/ssl.py, SSLSocket.shutdown; RFC 8446, 6.1.
        """
        if how == socket.SHUT_WR:
            self.settimeout(0)
            with contextlib.suppress(OSError, ValueError):
                self.unwrap()
        socket.socket.shutdown(self, how)


def encrypt(context: ssl.SSLContext, request: Any) -> ssl.SSLSocket:
    """Return the server's side of an encrypted connection, before its handshake. It takes over the descriptor of `request`."""
    context.sslsocket_class = TLSSocket
    return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
