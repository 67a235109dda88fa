"""Socket servers built from interchangeable parts: handlers are ordinary blocking code, and one word selects how they run concurrently.

The classic names are imported at once. Every other name is imported on first use, on its own, so that a program does not load parts
that it does not need, nor carry them into every process that it forks.
"""

import sys

from socketkit import socketserver
from socketkit.socketserver import *  # noqa: F403 - the classic names that this platform has

TYPE_CHECKING = False  # instead of importing it from typing

if TYPE_CHECKING:
    from socketkit._system.credentials import PeerCredentials, peer_credentials
    from socketkit.dispatchers.adaptive import Adaptive
    from socketkit.dispatchers.aio import Asyncio
    from socketkit.dispatchers.executor import Executor
    from socketkit.dispatchers.forks import Forks
    from socketkit.dispatchers.interpreters import Interpreters
    from socketkit.dispatchers.pool import Pool
    from socketkit.dispatchers.prefork import Prefork
    from socketkit.dispatchers.sync import Sync
    from socketkit.dispatchers.threads import Threads
    from socketkit.handlers.conversation import ConversationHandler
    from socketkit.handlers.coroutines import AsyncDatagramRequestHandler, AsyncRequestHandler, AsyncStreamRequestHandler
    from socketkit.handlers.messages import MessageHandler
    from socketkit.layers._proxy_header import ProxyHeader, ProxySSL
    from socketkit.layers.proxy import ProxiedAddress, ProxyProtocol
    from socketkit.layers.tls import TLS
    from socketkit.lifecycles.classic import Classic
    from socketkit.lifecycles.graceful import Graceful
    from socketkit.seams.limits import Limits
    from socketkit.seams.stats import DrainReport, Stats
    from socketkit.server import Server, compose
    from socketkit.transports.inherited import InheritedFD, Systemd
    from socketkit.transports.layered import Layered
    from socketkit.transports.memory import Memory
    from socketkit.transports.tcp import TCP
    from socketkit.transports.udp import UDP
    from socketkit.transports.unix import UnixDatagram, UnixStream

__version__ = "0.2.0"

__all__ = ["Server", "compose"]
__all__ += ["TCP", "TLS", "UDP", "InheritedFD", "Layered", "Memory", "Systemd", "UnixDatagram", "UnixStream"]
__all__ += ["ProxiedAddress", "ProxyHeader", "ProxyProtocol", "ProxySSL"]
__all__ += ["Adaptive", "Asyncio", "Executor", "Forks", "Interpreters", "Pool", "Prefork", "Sync", "Threads"]
__all__ += ["Classic", "Graceful"]
__all__ += ["AsyncDatagramRequestHandler", "AsyncRequestHandler", "AsyncStreamRequestHandler", "ConversationHandler", "MessageHandler"]
__all__ += ["DrainReport", "Limits", "PeerCredentials", "Stats", "peer_credentials"]
__all__ += ["socketserver"]
__all__ += socketserver.__all__

_PLACES = {
    "handlers.coroutines": ("AsyncDatagramRequestHandler", "AsyncRequestHandler", "AsyncStreamRequestHandler"),
    "_system.credentials": ("PeerCredentials", "peer_credentials"),
    "dispatchers.adaptive": ("Adaptive",),
    "dispatchers.aio": ("Asyncio",),
    "dispatchers.executor": ("Executor",),
    "dispatchers.forks": ("Forks",),
    "dispatchers.pool": ("Pool",),
    "dispatchers.interpreters": ("Interpreters",),
    "dispatchers.prefork": ("Prefork",),
    "dispatchers.sync": ("Sync",),
    "dispatchers.threads": ("Threads",),
    "handlers.conversation": ("ConversationHandler",),
    "layers._proxy_header": ("ProxyHeader", "ProxySSL"),
    "layers.proxy": ("ProxiedAddress", "ProxyProtocol"),
    "layers.tls": ("TLS",),
    "lifecycles.classic": ("Classic",),
    "lifecycles.graceful": ("Graceful",),
    "seams.limits": ("Limits",),
    "handlers.messages": ("MessageHandler",),
    "server": ("Server", "compose"),
    "seams.stats": ("DrainReport", "Stats"),
    "transports.inherited": ("InheritedFD", "Systemd"),
    "transports.layered": ("Layered",),
    "transports.memory": ("Memory",),
    "transports.tcp": ("TCP",),
    "transports.udp": ("UDP",),
    "transports.unix": ("UnixDatagram", "UnixStream"),
}
"""The names imported from each module on first use; the same as those listed above for type checkers."""

if not TYPE_CHECKING:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        """Import a name on first use."""
        for place, names in _PLACES.items():
            if name in names:
                from importlib import import_module  # noqa: PLC0415 - only now: to ask for any other name must import nothing

                value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
