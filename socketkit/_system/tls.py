"""Handshakes on sockets with TLS, without waiting. Imports `ssl` only in programs that use it."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable

from socketkit._system.sockets import DONT_WAIT, peek

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

_ALERT = bytes((21, 3, 1, 0, 2, 2, 40))
"""A record with the fatal alert handshake_failure, for clients that do not speak TLS: OpenSSL sends them none. Source: RFC 5246, 7.2."""

_NO_TLS = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"}


class TLSHandshake:
    """The handshake of one connection, in the shape of `socketkit.seams.Handshake`.

    encrypt: makes the socket with TLS, once the client has sent something: a silent client costs no more than its connection. None: the
    request is one already.
    """

    def __init__(self, request: Any, client_address: Any, encrypt: Callable[[Any], Any] | None = None) -> None:
        self.request = request
        self.sends = False
        self._client_address = client_address
        self._encrypt = encrypt

    def go_on(self) -> Any:
        """Do what can be done without waiting. Return the client's address once the handshake is over, else None.

        Raises: ConnectionAbortedError if the client has gone; OSError with OpenSSL's reason.
        """
        import ssl  # noqa: PLC0415 - it is loaded in every program that gets here

        self.sends = False
        try:
            if self._encrypt is not None:
                if peek(self.request) is None:
                    return None
                self.request, self._encrypt = self._encrypt(self.request), None
            self.request.do_handshake()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self.sends = True
            return None
        except OSError as error:
            raise failure(error, self.request) from error
        return self._client_address


def has_left(error: BaseException | None) -> bool:
    """Return whether the error means that the peer has disconnected, with TLS or without; of a group, whether all its errors do.

    A write to a connection that the peer has reset is an `SSLEOFError`. Source: CPython, Modules/_ssl.c, PySSL_SetError.
    """
    if isinstance(error, ConnectionError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(map(has_left, error.exceptions))
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def failure(error: OSError, request: Any, *, is_told: bool = True) -> OSError:
    """Return an error that says in words why a handshake has failed. A client that OpenSSL tells nothing gets an alert.

    is_told: whether OpenSSL's own alerts reach the client.
    """
    import ssl  # noqa: PLC0415 - see above

    if has_left(error) or error.errno == errno.ENOTCONN:  # it has reset the connection
        return ConnectionAbortedError("tls: the client closed the connection")
    if not isinstance(error, ssl.SSLError):
        return OSError(error.errno, f"tls: {error.strerror or error}")
    if error.reason in _NO_TLS or not is_told:
        with contextlib.suppress(OSError):
            socket.socket.send(request, _ALERT, DONT_WAIT)
    return OSError(f"tls: {reason(error)}")


def reason(error: Any) -> str:
    """Return the reason of an `ssl.SSLError` in words."""
    return error.reason.lower().replace("_", " ") if error.reason else str(error.strerror or error).lower()


def is_encrypted(sock: Any) -> bool:
    """Return whether it is an `ssl.SSLSocket`."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(sock, ssl.SSLSocket)


def shakes_hands(listener: Any) -> bool:
    """Return whether connections of the listener are to have shaken hands before a handler sees them."""
    return is_encrypted(listener) and listener.do_handshake_on_connect


def accept_unshaken(listener: Any) -> tuple[Any, Any]:
    """Accept from an `ssl.SSLSocket` without the handshake. Source: Lib/ssl.py, SSLSocket.accept. Raises: as that."""
    raw, address = socket.socket.accept(listener)
    try:
        wrapped = listener.context.wrap_socket(
            raw, do_handshake_on_connect=False, suppress_ragged_eofs=listener.suppress_ragged_eofs, server_side=True
        )
    except BaseException:
        raw.close()
        raise
    return wrapped, address
