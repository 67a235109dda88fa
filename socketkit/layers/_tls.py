"""The live part of the TLS layer: contexts, handshakes, and the sockets that handlers get."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from socketkit._system.tls import TLSHandshake, reason
from socketkit.errors import ConfigError
from socketkit.logs import Log
from socketkit.seams import Address, Handshake, Request

if TYPE_CHECKING:
    from socketkit.layers.tls import TLS

log = Log("socketkit.layers.tls")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Encryption:
    """The live part of the layer: it shakes hands with a context."""

    replaces_socket = True

    def __init__(self, context: ssl.SSLContext) -> None:
        context.sslsocket_class = TLSSocket
        self._context = context

    def begin(self, request: Request, client_address: Address) -> Handshake:
        return TLSHandshake(request, client_address, self._encrypt)

    def _encrypt(self, request: Request) -> ssl.SSLSocket:
        return self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)


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


# --- contexts --------------------------------------------------------------------------------------------------------


def context_of(recipe: TLS) -> ssl.SSLContext:
    """Return the context that a recipe describes. Raises: ConfigError, which names the file at fault."""
    if recipe.context is not None:
        return _given(recipe.context)
    context = _loaded(recipe, recipe.cert, recipe.key)
    hosts = {host[0].lower(): _loaded(recipe, *host[1:]) for host in recipe.sni}
    if hosts:
        context.sni_callback = partial(_choose, hosts)
    return context


def _loaded(recipe: TLS, cert: str, key: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = _VERSIONS[recipe.minimum]
    context.num_tickets = recipe.tickets
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could make the server compute at no cost to itself. Source: RFC 8446, D.4
    _load(context, cert, key, recipe.password)
    if recipe.client_ca is not None:
        with _naming(recipe.client_ca):
            context.load_verify_locations(recipe.client_ca)
    context.verify_mode = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}[recipe.client]
    if recipe.ciphers is not None:
        try:
            context.set_ciphers(recipe.ciphers)
        except ssl.SSLError as error:
            raise ConfigError.of(f"OpenSSL knows none of the ciphers {recipe.ciphers!r}", "ciphers") from error
    if recipe.alpn:
        context.set_alpn_protocols(list(recipe.alpn))
    return context


def _given(context: Any) -> ssl.SSLContext:
    """Return the program's own context. Raises: ConfigError."""
    found = context
    try:
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(module), name)
        if not isinstance(found, ssl.SSLContext):
            found = found()
    except (Exception, SystemExit) as error:  # a program's own code may raise anything
        raise ConfigError.of(f"{context!r} gives no context ({type(error).__name__}: {error})", "context") from error
    if not isinstance(found, ssl.SSLContext):
        raise ConfigError.of(f"{context!r} returned a {type(found).__name__}; it must return an ssl.SSLContext", "context")
    return found


def _load(context: ssl.SSLContext, cert: str, key: str | None, password: str | None) -> None:
    """Load a certificate with its key into the context. Raises: ConfigError, which names the file at fault."""
    for file in (cert, key or cert):
        with _naming(file):
            open(file, "rb").close()  # noqa: PTH123 - only whether that is possible
    with _naming(f"{cert} and {key}" if key else cert):
        context.load_cert_chain(cert, key, password if password is not None else _ask_nobody)
    expires = ssl.cert_time_to_seconds(str(_decoded(cert)["notAfter"]))
    if expires < datetime.now(UTC).timestamp():
        raise ConfigError.of(f"the certificate in {cert} has expired ({_decoded(cert)['notAfter']}); renew it", "cert")
    if os.name == "posix" and os.stat(key or cert).st_mode & (stat.S_IROTH | stat.S_IWOTH):  # noqa: PTH116
        log.warning("other users may read or change the private key in %s; run chmod 600 on it", key or cert, about=key or cert, few=1)


def _decoded(cert: str) -> Mapping[str, Any]:
    """Return the fields of the first certificate in a file."""
    return ssl._ssl._test_decode_cert(cert)  # type: ignore[attr-defined,no-any-return] # noqa: SLF001 - Python has no public way


def _ask_nobody() -> str:
    raise ValueError("its key is encrypted; give the password")


@contextlib.contextmanager
def _naming(files: str) -> Iterator[None]:
    """Turn errors in the block into a ConfigError that names the files."""
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigError.of(f"cannot use {files}: {reason(error)}") from error
    except OSError as error:
        raise ConfigError.of(f"cannot read {files}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError.of(f"cannot use {files}: {error}") from error


def _choose(hosts: Mapping[str, ssl.SSLContext], connection: ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
    """Switch a new connection to the context for the server name that its client asks for. Source: RFC 6066, 3."""
    chosen = hosts.get((name or "").lower())
    if chosen is not None:
        connection.context = chosen
