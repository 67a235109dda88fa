"""The parts that come with socketkit, offered through the same hooks that plugins use."""

from __future__ import annotations

from collections.abc import Mapping

from socketkit.dispatchers.adaptive import Adaptive
from socketkit.dispatchers.aio import Asyncio
from socketkit.dispatchers.executor import Executor
from socketkit.dispatchers.forks import Forks
from socketkit.dispatchers.interpreters import Interpreters
from socketkit.dispatchers.pool import Pool
from socketkit.dispatchers.prefork import Prefork
from socketkit.dispatchers.sync import Sync
from socketkit.dispatchers.threads import Threads
from socketkit.hookspecs import hookimpl
from socketkit.layers.proxy import ProxyProtocol
from socketkit.layers.tls import TLS
from socketkit.lifecycles.classic import Classic
from socketkit.lifecycles.graceful import Graceful
from socketkit.seams import AnyLayer, Dispatcher, Lifecycle, Transport
from socketkit.transports.inherited import InheritedFD, Systemd
from socketkit.transports.memory import Memory
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP
from socketkit.transports.unix import UnixDatagram, UnixStream


@hookimpl
def socketkit_transports() -> Mapping[str, type[Transport]]:
    """Return the transports that come with socketkit."""
    return {
        "tcp": TCP,
        "udp": UDP,
        "unix": UnixStream,
        "unix-dgram": UnixDatagram,
        "fd": InheritedFD,
        "systemd": Systemd,
        "memory": Memory,
    }


@hookimpl
def socketkit_layers() -> Mapping[str, type[AnyLayer]]:
    """Return the layers that come with socketkit."""
    return {"proxy": ProxyProtocol, "tls": TLS}


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Dispatcher]]:
    """Return the dispatchers that come with socketkit."""
    return {
        "sync": Sync,
        "thread": Threads,
        "fork": Forks,
        "pool": Pool,
        "adaptive": Adaptive,
        "prefork": Prefork,
        "interpreters": Interpreters,
        "asyncio": Asyncio,
        "executor": Executor,
    }


@hookimpl
def socketkit_lifecycles() -> Mapping[str, type[Lifecycle]]:
    """Return the lifecycles that come with socketkit."""
    return {"classic": Classic, "graceful": Graceful}
