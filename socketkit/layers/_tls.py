"""The live part of the TLS layer: contexts, handshakes, and the sockets that handlers get."""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs

from socketkit._system.tls import reason
from socketkit._system.tls_socket import Encryption
from socketkit.errors import ConfigError
from socketkit.layers._expiry import ExpiryLog, Validity, now, validity
from socketkit.logs import Log

if TYPE_CHECKING:
    from datetime import datetime

    from socketkit._system.loop_connections import LoopConnection
    from socketkit.layers.tls import TLS

log = Log("socketkit.layers.tls")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class LayerEncryption(Encryption):
    """The live part of the layer."""

    replaces_socket = True

    async def begin_in_loop(self, connection: LoopConnection) -> None:
        await connection.encrypt(self._context)


class RenewedEncryption(LayerEncryption):
    """Encryption with what the files of a recipe say now: see `socketkit.seams.Renews` and `socketkit.seams.Expires`.

    A handshake uses the context there is when it begins, and keeps it. Each process looks at the files for itself. Only the process that
    started the layer logs which certificates expire, because its workers see the same files. clock: see `ExpiryLog`.
    """

    def __init__(self, recipe: TLS, clock: Callable[[], datetime] = now) -> None:
        self._recipe = recipe
        self._stamps = _stamps(recipe)  # of the files when they were last read and could be used
        self._fault = ""  # why they cannot be used since; it has been logged
        loaded = load(recipe)
        super().__init__(loaded.context)
        self._certificates = loaded.certificates
        self._process = os.getpid()
        self._expiry_log = ExpiryLog(clock)
        self._expiry_log.look(self._certificates)

    @property
    def renew_every(self) -> float | None:
        return self._recipe.reload

    def renew(self) -> None:
        """Look at the files, and use them if they have changed and fit together; otherwise go on with what there is."""
        stamps = _stamps(self._recipe)  # before the files are read: if one changes meanwhile, the next look finds that
        if stamps != self._stamps or self._fault:
            self._load(stamps)
        if os.getpid() == self._process:
            self._expiry_log.look(self._certificates)

    def expiries(self) -> dict[str, datetime]:
        return {file: valid.end for file, valid in self._certificates.items()}

    def _load(self, stamps: dict[str, object]) -> None:
        try:
            loaded = load(self._recipe)
        except ConfigError as error:
            fault = "; ".join(fault.message for fault in error.faults)
            if fault != self._fault:
                log.warning("the files have changed, but the old certificates stay in use: %s", fault, about=fault)
            self._fault = fault
            return
        changed = [file for file in stamps if stamps[file] != self._stamps[file]]
        log.info("new handshakes use what is now in %s", ", ".join(changed or stamps))
        self._context = loaded.context
        self._certificates, self._stamps, self._fault = loaded.certificates, stamps, ""
        _warn_of_open_keys(self._recipe)


# --- contexts --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Loaded:
    """What the files of a recipe say: a context, and when each certificate is valid, by its file."""

    context: ssl.SSLContext
    certificates: Mapping[str, Validity]


def check(recipe: TLS) -> None:
    """Load everything that a recipe describes. Raises: ConfigError, which names the file at fault."""
    if recipe.context is not None:
        given(recipe.context)
    else:
        load(recipe)
        _warn_of_open_keys(recipe)


def load(recipe: TLS) -> Loaded:
    """Load the files of a recipe. Raises: ConfigError, which names the file at fault."""
    context = _context(recipe, recipe.cert, recipe.key)
    hosts = {name.lower(): _context(recipe, *pair) for name, *pair in recipe.sni}
    if hosts:
        context.sni_callback = partial(_choose, hosts)
    certificates = {cert: _validity(cert) for cert, _ in _pairs(recipe)}
    for cert, valid in certificates.items():
        if valid.end < now():
            raise ConfigError.of(f"the certificate in {cert} has expired, on {valid.end:%Y-%m-%d}; renew it", "cert")
    return Loaded(context, certificates)


def _pairs(recipe: TLS) -> list[tuple[str, str]]:
    """Return the file of each certificate, and that of its key."""
    pairs = [(recipe.cert, recipe.key), *((*pair, None)[:2] for _, *pair in recipe.sni)]
    return [(cert, key or cert) for cert, key in pairs]


def _stamps(recipe: TLS) -> dict[str, object]:
    """Return, for each file of a recipe, what changes whenever the file does, also where a symbolic link leads; None if it is not there."""
    files = itertools.chain(*_pairs(recipe), (recipe.client_ca,) if recipe.client_ca is not None else ())
    return {file: _stamp(file) for file in files}


def _stamp(file: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - a path object would only be in the way
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _context(recipe: TLS, cert: str, key: str | None = None) -> ssl.SSLContext:
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


def given(context: Any) -> ssl.SSLContext:
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
    texts = []
    for file in (cert, key or cert):
        with _naming(file), open(file, "rb") as opened:  # noqa: PTH123 - a path object would only be in the way
            texts.append(opened.read())
    if b"PRIVATE KEY-----" not in texts[-1]:  # OpenSSL would say "PEM lib"
        raise ConfigError.of(f"there is no private key in {key or cert}; name the file that has it", "key")
    with _naming(f"{cert} and {key}" if key else cert):
        context.load_cert_chain(cert, key, password if password is not None else _ask_nobody)


def _validity(cert: str) -> Validity:
    """Return when the first certificate in a file is valid. Raises: ConfigError."""
    with _naming(cert):
        return validity(cert)


def _warn_of_open_keys(recipe: TLS) -> None:
    for _, key in _pairs(recipe):
        with contextlib.suppress(OSError):  # it has just gone
            if os.name == "posix" and os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):  # noqa: PTH116 - as above
                log.warning("other users may read or change the private key in %s; run chmod 600 on it", key, about=key, few=1)


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
