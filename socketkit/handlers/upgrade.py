"""STARTTLS: a handler that has talked in clear goes on over TLS. Imports `ssl` only in programs that use it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import partial
from typing import Any

from socketkit._system.logs import Log
from socketkit._system.sockets import cut_off, discard_unread, is_readable
from socketkit._system.tls import TLSHandshake, is_encrypted
from socketkit._system.tls_socket import Encryption
from socketkit.errors import IncompatibleError, UpgradeError
from socketkit.handlers.files import has_buffered, input_of
from socketkit.seams import Request

log = Log("socketkit.template")


def upgrade(handler: Any, context: Any) -> Request:
    """Return the encrypted connection that takes the place of the handler's request: see `BaseRequestHandler.upgrade_tls`."""
    request, name = handler.request, type(handler).__name__
    if not hasattr(request, "detach"):
        raise IncompatibleError(name, f"cannot upgrade a {type(request).__name__} to TLS", "serve it on a transport of plain connections")
    if context is not None and (not isinstance(context, ssl.SSLContext) or context.protocol == ssl.PROTOCOL_TLS_CLIENT):
        raise IncompatibleError(name, f"cannot upgrade a connection with {context!r}", "give an ssl.SSLContext for servers")
    layer = None if context is None else Encryption(context)
    pass_layer = getattr(type(handler.server), "_pass_layer", None)  # only our own servers have it
    try:
        connection = None if pass_layer is None else pass_layer(handler.server, request, layer, _objection(handler))
        if connection is None and layer is not None:
            connection = _pass_alone(handler, layer)
    except UpgradeError as error:
        log.debug("%s: the upgrade to TLS ended the connection: %s", handler.client_address, error.reason)
        if hasattr(handler, "close_connection"):
            handler.close_connection = True  # of a conversation
        raise
    if connection is None:
        raise no_certificate(name)
    return connection


def no_certificate(handler: str) -> IncompatibleError:
    """Return the error of a handler, by its name, that upgrades without a context where no layer has one."""
    remedy = "add the layer TLS(..., upgrade=True) to the transport, or give it an ssl.SSLContext"
    return IncompatibleError(handler, "calls upgrade_tls(), and its server has no certificate for that", remedy)


def _objection(handler: Any) -> str:
    """Return why the connection must not be upgraded; "" if nothing speaks against it."""
    if is_encrypted(handler.request):
        return "tls: the connection is encrypted already"
    rfile = getattr(handler, "rfile", None)
    raw = input_of(rfile)
    if raw is not None and has_buffered(rfile, raw):
        return "tls: the client has sent something ahead of its handshake"
    return ""


# --- under servers that keep no record of their requests: the classic ones on their own, and the standard library's -----


def _pass_alone(handler: Any, layer: Encryption) -> Request:
    """Shake hands in this thread, and have the handler close the connection. Raises: UpgradeError, with the connection shut down."""
    handshake = layer.begin(handler.request, handler.client_address)
    try:
        _shake_hands(handshake, _objection(handler))
    except Exception as error:
        discard_unread(handshake.request)  # otherwise the close might destroy an alert
        with contextlib.suppress(OSError):  # the client has gone
            cut_off(handshake.request)
        if handshake.request is not handler.request:
            handshake.request.close()
        raise UpgradeError(str(error)) from error
    handler.finish = partial(_finish, handler, handshake.request)
    return handshake.request


def _shake_hands(handshake: TLSHandshake, objection: str) -> None:
    """Wait for the client, each time as long as the timeout of its socket says. Raises: OSError."""
    request = handshake.request
    if objection:
        raise OSError(objection)
    if not is_readable(request, request.gettimeout()):
        raise TimeoutError("the client has not begun its handshake in time")
    handshake.go_on()


def _finish(handler: Any, connection: Any) -> None:
    """Do the handler's own `finish`, then close the connection: the server closes only the one that it has accepted."""
    del handler.finish  # this function, which refers to the handler
    try:
        handler.finish()
    finally:
        with contextlib.suppress(OSError):  # the client has gone
            connection.shutdown(socket.SHUT_WR)
        connection.close()
