"""Checks what this platform supports and which parts can work together; incompatible compositions are refused here."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from socketkit.errors import ConfigError, IncompatibleError
from socketkit.handlers.base import unwrapped
from socketkit.seams.events import EVENTS

_SOCKETS = sys.platform not in {"emscripten", "wasi"}

FEATURES: dict[str, bool] = {
    "sockets": _SOCKETS,
    "threads": _SOCKETS,
    "epoll or kqueue": hasattr(select, "epoll") or hasattr(select, "kqueue"),
    "Python 3.14 or later": _SOCKETS and sys.version_info >= (3, 14),
    "fork": _SOCKETS and hasattr(os, "fork"),
    "Unix sockets": _SOCKETS and hasattr(socket, "AF_UNIX"),
    "setresuid": hasattr(os, "setresuid"),
    "descriptor passing": _SOCKETS and hasattr(socket, "send_fds"),
    "SO_BINDTODEVICE for interface": hasattr(socket, "SO_BINDTODEVICE"),
    "SO_REUSEPORT for reuse_port": hasattr(socket, "SO_REUSEPORT"),
    "TCP_FASTOPEN for fastopen": hasattr(socket, "TCP_FASTOPEN"),
    "TCP_KEEPIDLE for keepalive": hasattr(socket, "TCP_KEEPIDLE"),
}
"""The features that a recipe may name in `requires`, and whether this platform has each."""


def missing(part: Any) -> list[str]:
    """Return the features that a recipe requires and this platform lacks, sorted."""
    return sorted(each for each in getattr(part, "requires", ()) if not FEATURES.get(each, False))


BOTH = frozenset({"stream", "datagram"})

_NEARLY = 0.85
"""How similar to the name of an event, from 0 to 1, a method's name is that is taken for a slip."""


def check(transports: Sequence[Any], dispatcher: Any, lifecycle: Any, handler: Any = None, limits: Any = None) -> None:
    """Refuse a composition that cannot work, before anything is bound.

    It looks at what the parts declare, all of which is optional: see the traits and powers in `socketkit.seams`.
    Raises: ConfigError, IncompatibleError.
    """
    if not transports:
        raise ConfigError.of("a server needs at least one transport; give one, such as tcp://127.0.0.1:9999")
    for part in (*transports, dispatcher, lifecycle):
        for feature in missing(part):
            reason = f"needs {feature}, which this platform ({sys.platform}) lacks"
            remedy = "leave that option out" if " for " in feature else "choose another part"
            raise IncompatibleError(type(part).__name__, reason, remedy)
    handler = unwrapped(handler)
    for transport in transports:
        _check_kinds(dispatcher, handler, transport)
        _check_reach(dispatcher, transport)
    is_async = getattr(handler, "is_async", False)
    if is_async:
        _check_async(dispatcher, handler)
    for transport in transports:
        _check_layers(getattr(transport, "layers", ()), handler, is_async=is_async and not _answers(transport))
        if getattr(limits, "max_per_peer", None) is not None:
            _check_count(getattr(transport, "layers", ()), dispatcher)
    if hasattr(dispatcher, "check"):
        dispatcher.check(handler)


def check_observers(observers: Sequence[object]) -> None:
    """Refuse an observer with a method whose name is nearly that of an event, and which nothing would call. Raises: ConfigError."""
    from difflib import get_close_matches  # noqa: PLC0415 - most servers have no observers

    for observer in observers:
        for name in dir(observer):
            if name.startswith("_") or name in EVENTS:
                continue
            near = get_close_matches(name, EVENTS, n=1, cutoff=_NEARLY)
            if near and callable(getattr(observer, name)):
                raise ConfigError.of(
                    f"observer {type(observer).__name__} has a method {name!r}, did you mean {near[0]!r}? If not, rename it"
                )


def _check_kinds(dispatcher: Any, handler: Any, transport: Any) -> None:
    _check_kind(type(dispatcher).__name__, getattr(dispatcher, "kinds", BOTH), transport, "dispatcher")
    if not _answers(transport):
        _check_kind(getattr(handler, "__name__", repr(handler)), _request_kinds(handler), transport, "handler")


def _check_kind(name: str, kinds: Collection[str], transport: Any, role: str) -> None:
    if transport.kind not in kinds:
        reason = f"accepts only {' and '.join(sorted(kinds))} requests, but {transport.url} carries {transport.kind}s"
        raise IncompatibleError(name, reason, f"choose another {role} or transport")


def _check_reach(dispatcher: Any, transport: Any) -> None:
    """Refuse a transport whose requests only this process can serve, if others are to serve them."""
    if not getattr(getattr(transport, "transport", transport), "stays_in_process", False):
        return
    for each in (dispatcher, getattr(dispatcher, "inner", None)):
        if getattr(each, "forks_workers", False) or getattr(each, "forks_requests", False) or hasattr(each, "interpreters"):
            reason = f"serves only in the process that opens it, and {type(each).__name__} serves in others"
            raise IncompatibleError(transport.url, reason, "choose another transport or dispatcher")


def _check_async(dispatcher: Any, handler: Any) -> None:
    """Refuse an asynchronous handler that the dispatcher cannot await."""
    name = type(dispatcher).__name__
    library, found = (getattr(each, "async_library", "asyncio") for each in (handler, dispatcher))
    if not getattr(dispatcher, "runs_async", False):
        raise IncompatibleError(handler.__name__, f"is an async handler, which {name} cannot run", f"use dispatcher={library!r}")
    if library != found:
        raise IncompatibleError(
            handler.__name__, f"is written for {library}, and {name} has an event loop of {found}", f"use dispatcher={library!r}"
        )


def _answers(transport: Any) -> bool:
    """Return whether the last layer of a transport answers every client, so that no handler sees any."""
    return any(getattr(layer, "answers", False) for layer in getattr(transport, "layers", ()))


def _check_layers(layers: Sequence[Any], handler: Any, *, is_async: bool) -> None:
    """is_async: whether an asynchronous handler comes after the layers. One that takes any socket reads it as threads do."""
    is_async = is_async and not getattr(handler, "takes_any_socket", False)
    replacing = None
    _check_last(layers)
    for layer in layers:
        name = type(layer).__name__
        if replacing and getattr(layer, "needs_socket", False):
            raise IncompatibleError(name, f"works only on the socket, which {replacing} replaces", f"put {name} before {replacing}")
        if replacing and is_async:
            reason = f"cannot follow {replacing}, which leaves the connection to the event loop"
            raise IncompatibleError(name, reason, "choose a blocking handler, or leave that layer out")
        if getattr(layer, "replaces_socket", False):
            if is_async and not getattr(layer, "begins_in_loop", False):
                reason = f"replaces the socket with another object, and {handler.__name__} can await only a socket"
                raise IncompatibleError(name, reason, "choose a blocking handler")
            if is_async and not hasattr(handler, "loop_connection"):
                reason = f"replaces the socket with a connection of the event loop, and {handler.__name__} takes only a socket"
                raise IncompatibleError(name, reason, "derive the handler from AsyncStreamRequestHandler")
            replacing = replacing or name
        if hasattr(layer, "check"):
            layer.check(handler)


def _check_last(layers: Sequence[Any]) -> None:
    """Refuse a layer after one that has to be the last."""
    for layer, following in pairwise(layers):
        name, after = type(layer).__name__, type(following).__name__
        if getattr(layer, "upgrade", False):
            reason = f"is after {name}, which connections pass only when their handler asks for it"
            raise IncompatibleError(after, reason, f"put {name} last")
        if getattr(layer, "answers", False):
            raise IncompatibleError(after, f"is after {name}, which answers every client itself", f"put {name} last")


def _check_count(layers: Sequence[Any], dispatcher: Any) -> None:
    naming = next((layer for layer in layers if getattr(layer, "names_client", False)), None)
    forking = next((each for each in (dispatcher, getattr(dispatcher, "inner", None)) if getattr(each, "forks_requests", False)), None)
    if naming and forking:
        reason = f"cannot count connections for max_per_peer: only its children learn the client's address from {type(naming).__name__}"
        raise IncompatibleError(type(forking).__name__, reason, "leave max_per_peer out, or choose another dispatcher")


def _request_kinds(handler: Any) -> Collection[str]:
    """Return the kinds of request that a handler takes, as declared or by its base class in the standard library."""
    standard = sys.modules.get("socketserver")
    declared = getattr(handler, "request_kinds", None)
    if declared is not None or standard is None or not isinstance(handler, type):
        return BOTH if declared is None else declared
    if issubclass(handler, standard.StreamRequestHandler):
        return frozenset({"stream"})
    return frozenset({"datagram"}) if issubclass(handler, standard.DatagramRequestHandler) else BOTH
