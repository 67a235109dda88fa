"""Where the parts are that come with socketkit, so that each can be imported alone."""

from __future__ import annotations

from collections.abc import Mapping

PLACES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "transport": {
        "tcp": ("transports.tcp", "TCP"),
        "udp": ("transports.udp", "UDP"),
        "unix": ("transports.unix", "UnixStream"),
        "unix-dgram": ("transports.unix", "UnixDatagram"),
        "fd": ("transports.inherited", "InheritedFD"),
        "systemd": ("transports.inherited", "Systemd"),
        "memory": ("transports.memory", "Memory"),
    },
    "layer": {
        "proxy": ("layers.proxy", "ProxyProtocol"),
        "tls": ("layers.tls", "TLS"),
    },
    "dispatcher": {
        "sync": ("dispatchers.sync", "Sync"),
        "thread": ("dispatchers.threads", "Threads"),
        "fork": ("dispatchers.forks", "Forks"),
        "pool": ("dispatchers.pool", "Pool"),
        "adaptive": ("dispatchers.adaptive", "Adaptive"),
        "prefork": ("dispatchers.prefork", "Prefork"),
        "interpreters": ("dispatchers.interpreters", "Interpreters"),
        "asyncio": ("dispatchers.aio", "Asyncio"),
        "executor": ("dispatchers.executor", "Executor"),
    },
    "lifecycle": {
        "classic": ("lifecycles.classic", "Classic"),
        "graceful": ("lifecycles.graceful", "Graceful"),
    },
}
"""For each kind of part the names, and for each name the module and the class in it."""


def recipe_at(kind: str, name: str) -> type | None:
    """Return the recipe of that name, after importing its module and no other part; None if no such part comes with socketkit."""
    from importlib import import_module  # noqa: PLC0415 - few programs choose a part by its name

    module, attribute = PLACES[kind].get(name, ("", ""))
    recipe: type | None = getattr(import_module(f"socketkit.{module}"), attribute) if module else None
    return recipe


def name_at(recipe: type) -> str | None:
    """Return the name of a recipe that comes with socketkit; None for any other class."""
    place = recipe.__module__.removeprefix("socketkit."), recipe.__qualname__
    return next((name for places in PLACES.values() for name, each in places.items() if each == place), None)
