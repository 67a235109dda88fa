"""Encrypting connections, and the sockets that this makes. Import it only where TLS is wanted, because it imports `ssl`."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

from socketkit._system.tls import TLSHandshake


class TLSSocket(ssl.SSLSocket):
    """An encrypted connection that any thread may shut down, that says goodbye at its end, and whose sends can be watched."""

    is_sending = False
    """Whether a send may wait for the client. SO_SNDTIMEO does not end it: Python tries again for ever. A timeout for each send would, but
    it takes two more system calls, for which Python lets other threads run. Source: CPython, Modules/_ssl.c, _ssl__SSLSocket_write."""

    def send(self, data: Any, flags: int = 0) -> int:
        """As `ssl.SSLSocket.send`, which `sendall` calls too."""
        self.is_sending = True
        try:
            return super().send(data, flags)
        finally:
            self.is_sending = False

    def settimeout(self, value: float | None) -> None:
        """Set the timeout, unless it is that already: the `ssl` module sets it again after each step of a handshake.

        Each time would be a system call, for which Python lets other threads run. Source: Lib/ssl.py, SSLSocket.do_handshake.
        """
        if value != self.gettimeout():
            super().settimeout(value)

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


class Encryption:
    """Shakes hands with a context, in the shape of `socketkit.seams.ShakesHands`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def begin(self, request: Any, client_address: Any) -> TLSHandshake:
        """Return the handshake of a new connection."""
        return TLSHandshake(request, client_address, self._encrypt)

    def _encrypt(self, request: Any) -> ssl.SSLSocket:
        """Return the server's side of an encrypted connection, before its handshake. It takes over the descriptor of `request`."""
        context = self._context  # read once: another thread may renew it
        context.sslsocket_class = TLSSocket
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
