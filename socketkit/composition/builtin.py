"""The parts that come with socketkit, offered through the same hooks that plugins use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from socketkit.composition.places import PLACES, recipe_at
from socketkit.hookspecs import hookimpl
from socketkit.seams import AnyLayer, Dispatcher, Lifecycle, Transport


def _all(kind: str) -> Mapping[str, type[Any]]:
    return {name: recipe for name in PLACES[kind] if (recipe := recipe_at(kind, name)) is not None}


@hookimpl
def socketkit_transports() -> Mapping[str, type[Transport]]:
    """Return the transports that come with socketkit."""
    return _all("transport")


@hookimpl
def socketkit_layers() -> Mapping[str, type[AnyLayer]]:
    """Return the layers that come with socketkit."""
    return _all("layer")


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Dispatcher]]:
    """Return the dispatchers that come with socketkit."""
    return _all("dispatcher")


@hookimpl
def socketkit_lifecycles() -> Mapping[str, type[Lifecycle]]:
    """Return the lifecycles that come with socketkit."""
    return _all("lifecycle")
