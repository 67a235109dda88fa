"""Socket servers composed from injected parts: ordinary blocking handlers, and one word to change the concurrency under them.

The classic names are here at once. What servers are composed of is imported when it is first asked for, each part alone: a program
that needs one part does not wait for the others, nor carry them into every process that it forks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from socketkit import socketserver
from socketkit.socketserver import *  # noqa: F403 - the classic names, as many as this platform has

if TYPE_CHECKING:
    from socketkit._system.credentials import PeerCredentials, peer_credentials
    from socketkit.dispatchers.adaptive import Adaptive
    from socketkit.dispatchers.aio import Asyncio
    from socketkit.dispatchers.executor import Executor
    from socketkit.dispatchers.forks import Forks
    from socketkit.dispatchers.pool import Pool
    from socketkit.dispatchers.prefork import Prefork
    from socketkit.dispatchers.sync import Sync
    from socketkit.dispatchers.threads import Threads
    from socketkit.handlers.conversation import ConversationHandler
    from socketkit.handlers.coroutines import AsyncDatagramRequestHandler, AsyncStreamRequestHandler
    from socketkit.handlers.messages import MessageHandler
    from socketkit.lifecycles.classic import Classic
    from socketkit.lifecycles.graceful import Graceful
    from socketkit.seams.limits import Limits
    from socketkit.seams.stats import DrainReport, Stats
    from socketkit.server import Server, compose
    from socketkit.transports.inherited import InheritedFD, Systemd
    from socketkit.transports.layered import Layered
    from socketkit.transports.tcp import TCP
    from socketkit.transports.udp import UDP
    from socketkit.transports.unix import UnixDatagram, UnixStream

__version__ = "0.2.0"

__all__ = [  # noqa: RUF022 - classes, then functions and modules, then the classic names
    "Adaptive",
    "AsyncDatagramRequestHandler",
    "AsyncStreamRequestHandler",
    "Asyncio",
    "Classic",
    "ConversationHandler",
    "DrainReport",
    "Executor",
    "Forks",
    "Graceful",
    "InheritedFD",
    "Layered",
    "Limits",
    "MessageHandler",
    "PeerCredentials",
    "Pool",
    "Prefork",
    "Server",
    "Stats",
    "Sync",
    "Systemd",
    "TCP",
    "Threads",
    "UDP",
    "UnixDatagram",
    "UnixStream",
    "compose",
    "peer_credentials",
    "socketserver",
]
__all__ += socketserver.__all__

_PLACES = {
    "handlers.coroutines": ("AsyncDatagramRequestHandler", "AsyncStreamRequestHandler"),
    "_system.credentials": ("PeerCredentials", "peer_credentials"),
    "dispatchers.adaptive": ("Adaptive",),
    "dispatchers.aio": ("Asyncio",),
    "dispatchers.executor": ("Executor",),
    "dispatchers.forks": ("Forks",),
    "dispatchers.pool": ("Pool",),
    "dispatchers.prefork": ("Prefork",),
    "dispatchers.sync": ("Sync",),
    "dispatchers.threads": ("Threads",),
    "handlers.conversation": ("ConversationHandler",),
    "lifecycles.classic": ("Classic",),
    "lifecycles.graceful": ("Graceful",),
    "seams.limits": ("Limits",),
    "handlers.messages": ("MessageHandler",),
    "server": ("Server", "compose"),
    "seams.stats": ("DrainReport", "Stats"),
    "transports.inherited": ("InheritedFD", "Systemd"),
    "transports.layered": ("Layered",),
    "transports.tcp": ("TCP",),
    "transports.udp": ("UDP",),
    "transports.unix": ("UnixDatagram", "UnixStream"),
}
"""By module, what is imported from it when asked for; the same as the type checker is told above."""

if not TYPE_CHECKING:  # a checker that saw it would take every name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is asked for, the first time."""
        for place, names in _PLACES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=import_module(__name__))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
