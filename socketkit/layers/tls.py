"""TLS: the layer that encrypts connections, with certificates from files or with a context of the program's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from socketkit.errors import IncompatibleError
from socketkit.seams import Seconds, ShakesHands
from socketkit.seams.validators import at_least, seconds

_text_or_none = attrs.validators.optional(attrs.validators.instance_of(str))


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _hosts(value: Any) -> Any:
    return tuple((name, *map(_path, pair)) for name, pair in _pairs(value)) if isinstance(value, Mapping) else value


def _pairs(hosts: Mapping[Any, Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return each host's name with its certificate and key; both may be in one file."""
    return [(name, (pair,) if isinstance(pair, str | os.PathLike) else tuple(pair)) for name, pair in hosts.items()]


def _is_alpn(_recipe: object, field: Any, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, str) and 0 < len(each.encode()) < 256 for each in value):  # noqa: PLR2004 - one byte
        raise ValueError(f"{field.name} must be a list of protocol names, such as h2 or http/1.1, not {value!r}")


def _is_hosts(_recipe: object, field: Any, value: Any) -> None:
    fits = isinstance(value, tuple) and all(1 < len(each) < 4 and all(isinstance(text, str) for text in each) for each in value)  # noqa: PLR2004
    if not fits:
        raise ValueError(
            f"{field.name} must be a table of server names, each with a certificate file or a list of it and its key, not {value!r}"
        )


def _is_context(_recipe: object, field: Any, value: Any) -> None:
    if value is not None and not isinstance(value, str) and not callable(value) and type(value).__module__ != "ssl":
        raise ValueError(f"{field.name} must be an SSLContext, a function that returns one, or its module:name, not {value!r}")


def _is_pause(recipe: object, field: Any, value: Any) -> None:
    if value is not None:
        seconds(recipe, field, value, ", or none for never")
    if value == 0:
        raise ValueError(f"{field.name} must be more than 0 seconds, or none for never")


@attrs.frozen
class TLS:
    """Encrypts connections. The client's part of a handshake is awaited without a thread, under `Limits.handshake`.

    Without `context`, the settings are those of `ssl.create_default_context` for servers: TLS 1.2 and up, and no weak ciphers.
    """

    cert: str = attrs.field(default="", converter=_path, validator=attrs.validators.instance_of(str))
    """File with the certificate and the chain above it, in PEM form. Its key may be in the same file."""
    key: str | None = attrs.field(default=None, converter=_path, validator=_text_or_none)
    """File with the private key; None: it is in `cert`."""
    password: str | None = attrs.field(default=None, validator=_text_or_none, repr=False, kw_only=True)
    """Password of an encrypted key."""
    client: Literal["none", "optional", "required"] = attrs.field(
        default="none", validator=attrs.validators.in_(("none", "optional", "required")), kw_only=True
    )
    """Whether clients present a certificate. One that is presented has to be valid."""
    client_ca: str | None = attrs.field(default=None, converter=_path, validator=_text_or_none, kw_only=True)
    """File with the certificates of the authorities that sign clients' certificates."""
    sni: Any = attrs.field(default=(), converter=_hosts, validator=_is_hosts, kw_only=True)
    """Other certificates, by the server name that clients ask for: a mapping of names to a file or to (cert, key)."""
    alpn: tuple[str, ...] = attrs.field(default=(), converter=_names, validator=_is_alpn, kw_only=True)
    """Protocols to agree on, preferred ones first; `request.selected_alpn_protocol()` is the result, or that of an `ssl_object`."""
    minimum: Literal["1.2", "1.3"] = attrs.field(default="1.2", validator=attrs.validators.in_(("1.2", "1.3")), kw_only=True)
    """Oldest version of TLS."""
    ciphers: str | None = attrs.field(default=None, validator=_text_or_none, kw_only=True)
    """Ciphers of TLS 1.2, in OpenSSL's notation; None: Python's default."""
    tickets: int = attrs.field(default=2, validator=at_least(0), kw_only=True)
    """Session tickets sent to each client of TLS 1.3."""
    reload: Seconds | None = attrs.field(default=60.0, validator=_is_pause, kw_only=True)
    """Time between two looks at the files. Once they have changed and fit together, new handshakes use what they say. None: the server looks
    when it starts, and when `socketkit serve` gets SIGHUP."""
    upgrade: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool), kw_only=True)
    """Leave connections in clear until their handler calls `upgrade_tls()`, as for STARTTLS."""
    context: Any = attrs.field(default=None, validator=_is_context, kw_only=True)
    """A ready-made `ssl.SSLContext`, a function that returns one, or its ``module:name``. Excludes all other options except `upgrade`."""

    replaces_socket: ClassVar[bool] = True
    begins_in_loop: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        given = [field.name for field in attrs.fields(TLS) if getattr(self, field.name) != field.default]
        own = [name for name in given if name not in {"context", "upgrade"}]
        if self.context is not None and own:
            raise ValueError(f"context excludes {', '.join(own)}, because the context decides everything; leave out one or the other")
        if self.context is None and not self.cert:
            raise ValueError("cert is missing; give a file with a certificate and its chain, or a context")
        if self.client != "none" and self.client_ca is None:
            raise ValueError(f"client={self.client!r} needs client_ca, the certificates of the authorities that sign clients' certificates")

    def check(self, handler: object) -> None:
        """Load everything once. Raises: ConfigError, which names the file at fault; IncompatibleError if nothing would be encrypted."""
        from socketkit.layers import _tls  # noqa: PLC0415 - importing ssl takes longer than most of socketkit

        if self.upgrade and not hasattr(handler, "upgrade_tls"):
            name = getattr(handler, "__name__", repr(handler))
            reason = f"leaves connections in clear until their handler calls upgrade_tls(), which {name} does not have"
            raise IncompatibleError("TLS", reason, "derive it from StreamRequestHandler, or leave upgrade out")
        _tls.check(self)

    def start(self) -> ShakesHands:
        """Return the live part. Raises: ConfigError, which names the file at fault."""
        from socketkit.layers import _tls  # noqa: PLC0415 - as above

        return _tls.LayerEncryption(_tls.given(self.context)) if self.context is not None else _tls.RenewedEncryption(self)
