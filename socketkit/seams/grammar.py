"""Parsers for what a user types: parts such as ``prefork:4/pool:16``, URLs such as ``tcp+tls://[::]:443?tls.cert=a.pem``, durations.

Parsers turn text into small values. They do not know which parts exist or what their options mean.

* A part is ``NAME[:VALUE][,key=value]...``. ``outer/inner`` nests one part in another. VALUE ends at the next ``,`` or ``/`` and may
  contain colons (``executor:module:factory``) and ``://`` (``dask:tcp://10.0.0.5:8786``). Without a VALUE, options may follow the colon:
  ``graceful:drain=10``.
* A URL is ``transport[+layer]...://PLACE[?key=value&...]``. Only an abstract Unix socket has no slashes: ``unix:@name``. Options
  of a layer are dotted: ``layer.key=value``. ``tls://`` is short for ``tcp+tls://``.
* Values, places and options may contain percent-codes such as ``%2C``, so that any text can be written. Only the ``%`` before the scope
  of an IPv6 address may stand for itself: ``[fe80::1%eth0]`` is ``[fe80::1%25eth0]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote as percent_encode
from urllib.parse import unquote

import attrs

from socketkit.errors import ConfigError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEY = re.compile(rf"(?:{_NAME.pattern}\.)?[A-Za-z_][A-Za-z0-9_]*")
_NESTS = re.compile(r"(?<!:)(?<!:/)/|(?<=:)/(?!/)")  # a slash, but not of "://"
_OPTION = re.compile(rf"{_KEY.pattern}=")
_URL = re.compile(r"([^:/?]*):(?://|(?=@))([^?]*)(?:\?(.*))?", re.DOTALL)
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]+(?:%[^\]]+)?\]")
# The scope of an IPv6 address as most programs print it, a number or a name, where RFC 6874 writes %25. Not what is a percent-code.
_BARE_SCOPE = re.compile(r"(?<=^\[)([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)%(?!25[^\]])(?=[0-9]+\]|[0-9A-Fa-f]?(?:[^0-9A-Fa-f%]))")
_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|)")

_PART_FORM = "write NAME[:VALUE][,key=value]..., nested with '/', as in pool:32 or prefork:4/pool:16"
_URL_FORM = "write NAME://PLACE[?key=value&...], as in tcp://127.0.0.1:9999 or unix:///run/echo.sock?mode=0o600"

_IN_PART = ":@[]*+?&"  # characters that a value may contain unquoted, besides letters and digits
_IN_URL = ":@[]*+=,/"

_SHORT = {"tls": "tcp+tls"}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}


@attrs.frozen
class Part:
    """One part as typed, with its options still as text. `value` is "" if none was given."""

    name: str
    value: str = ""
    options: dict[str, str] = attrs.field(factory=dict)
    inner: Part | None = None

    def __str__(self) -> str:
        head = f"{self.name}:{quote(self.value, safe=_IN_PART)}" if self.value else self.name
        options = "".join(f",{key}={quote(value, safe=_IN_PART)}" for key, value in self.options.items())
        return f"{head}{options}/{self.inner}" if self.inner else f"{head}{options}"


@attrs.frozen
class Url:
    """A transport and its layers in wire order. The transport's value is the text between ``://`` and ``?``."""

    transport: Part
    layers: tuple[Part, ...] = ()

    def __str__(self) -> str:
        scheme = "+".join(part.name for part in (self.transport, *self.layers))
        place = quote(self.transport.value)
        options = [f"{key}={quote(value)}" for key, value in self.transport.options.items()]
        options += [f"{layer.name}.{key}={quote(value)}" for layer in self.layers for key, value in layer.options.items()]
        return f"{scheme}:{'' if place.startswith('@') else '//'}{place}{'?' if options else ''}{'&'.join(options)}"


def quote(text: str, *, safe: str = _IN_URL) -> str:
    """Return `text` percent-encoded for the place or options of a URL, so that `url` reads the same text back."""
    return percent_encode(text, safe=safe)


def is_name(text: str) -> bool:
    """Return whether `text` is a valid name for a part."""
    return _NAME.fullmatch(text) is not None


def part(text: str) -> Part:
    """Return the part that `text` describes; for ``outer/inner``, the outer part with the inner one inside.

    Raises: ConfigError with one sentence that gives the correct form.
    """
    with _form_given(text, _PART_FORM):
        *outer, innermost = _NESTS.split(text)
        part = _segment(innermost)
        for segment in reversed(outer):
            part = _segment(segment, part)
        return part


def url(text: str) -> Url:
    """Return the transport and the layers that `text` describes. Raises: ConfigError with one sentence that gives the correct form."""
    with _form_given(text, _URL_FORM):
        match = _URL.fullmatch(text)
        if match is None:
            raise ValueError("is not a URL")
        scheme, place, query = match.groups()
        name, *layers = map(_name, _SHORT.get(scheme, scheme).split("+"))
        if len(set(layers)) < len(layers):
            raise ValueError("has a layer twice")
        belongs: dict[str, dict[str, str]] = {layer: {} for layer in ("", *layers)}
        for key, value in _options(query.split("&") if query else ()).items():
            layer, _, option = key.rpartition(".")
            if layer not in belongs:
                raise ValueError(f"has an option {key!r} but no layer {layer!r}{did_you_mean(layer, layers)}")
            belongs[layer][option] = value
        own = belongs.pop("")
        place = _decode(_BARE_SCOPE.sub(r"\1%25", place))
        if place.startswith("[") and ":" in place.partition("]")[0] and not _IPV6.match(place):
            raise ValueError(f"has {place!r} where an IPv6 address should be")
        return Url(Part(name, place, own), tuple(Part(layer, options=options) for layer, options in belongs.items()))


def options(text: str) -> dict[str, str]:
    """Return the options in ``key=value,key=value``, as text. Raises: ConfigError."""
    with _form_given(text, "write key=value[,key=value]..."):
        return _options(text.split(","))


def seconds(text: str) -> float:
    """Return the duration ``500ms``, ``30s``, ``5m`` or a plain ``1.5`` in seconds. Raises: ConfigError."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ConfigError.of(f"{text!r} is not a duration; write seconds, or 500ms, 30s, 5m")
    return float(match[1]) * _UNITS[match[2]]


@contextmanager
def _form_given(text: str, form: str) -> Iterator[None]:
    """Turn a ValueError, which describes a fault of `text`, into a ConfigError that also gives the correct form."""
    try:
        yield
    except ValueError as error:
        raise ConfigError.of(f"{text!r} {error}; {form}") from None


def _segment(text: str, inner: Part | None = None) -> Part:
    head, *options = text.split(",")
    name, colon, value = head.partition(":")
    if colon and (not value or value.startswith("//")):
        raise ValueError(f"has nothing after the ':' of {name!r}")
    if _OPTION.match(value):
        value, options = "", [value, *options]
    return Part(_name(name), _decode(value), _options(options), inner)


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"has {text!r} where a name should be" if text else "lacks a name")
    return text


def _options(items: Iterable[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ValueError(f"has {item!r} where key=value should be")
        if key in options:
            raise ValueError(f"gives {key!r} twice")
        options[key] = _decode(value)
    return options


def _decode(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()  # argv bytes that are not UTF-8 arrive as lone surrogates, which a URL cannot contain
    except UnicodeError:
        raise ValueError(f"has {text!r}, which is not UTF-8 after percent-decoding") from None
    if "\0" in decoded:  # no address, path or option can contain one, and system calls raise on it
        raise ValueError(f"has a NUL in {text!r}")
    return decoded
