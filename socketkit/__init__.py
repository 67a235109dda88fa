"""Socket servers composed from injected parts: ordinary blocking handlers, and one word to change the concurrency under them."""

from socketkit import socketserver
from socketkit.async_handlers import AsyncDatagramRequestHandler, AsyncStreamRequestHandler
from socketkit.dispatchers.adaptive import Adaptive
from socketkit.dispatchers.aio import Asyncio
from socketkit.dispatchers.executor import Executor
from socketkit.dispatchers.forks import Forks
from socketkit.dispatchers.pool import Pool
from socketkit.dispatchers.prefork import Prefork
from socketkit.dispatchers.sync import Sync
from socketkit.dispatchers.threads import Threads
from socketkit.handlers import ConversationHandler
from socketkit.lifecycles.classic import Classic
from socketkit.lifecycles.graceful import Graceful
from socketkit.message_handlers import MessageHandler
from socketkit.server import Server, compose
from socketkit.socketserver import *  # noqa: F403 - the classic names, as many as this platform has
from socketkit.stats import DrainReport, Stats
from socketkit.transports.layered import Layered
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP
from socketkit.transports.unix import UnixDatagram, UnixStream

__version__ = "0.1.0"

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
    "Layered",
    "MessageHandler",
    "Pool",
    "Prefork",
    "Server",
    "Stats",
    "Sync",
    "TCP",
    "Threads",
    "UDP",
    "UnixDatagram",
    "UnixStream",
    "compose",
    "socketserver",
]
__all__ += socketserver.__all__
