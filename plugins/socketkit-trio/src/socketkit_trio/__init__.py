"""A dispatcher for socketkit: handlers are coroutines of trio, each in a task of its own, all in one thread.

The module is imported as soon as a program looks up a dispatcher by its name, so it imports trio only for programs that use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from socketkit.hookspecs import hookimpl
from socketkit.seams import at_least

if TYPE_CHECKING:
    from collections.abc import Mapping

    from socketkit.seams import BoundsHandlers, Dispatcher, Drive, UsesAsyncLibrary, Work
    from socketkit_trio._stream import ConnectionLostError, RequestStream
    from socketkit_trio.handlers import TrioDatagramRequestHandler, TrioStreamRequestHandler

__all__ = (
    "ConnectionLostError",
    "RequestStream",
    "Trio",
    "TrioDatagramRequestHandler",
    "TrioStreamRequestHandler",
    "socketkit_dispatchers",
)

_PLACES = {
    "ConnectionLostError": "_stream",
    "RequestStream": "_stream",
    "TrioDatagramRequestHandler": "handlers",
    "TrioStreamRequestHandler": "handlers",
}
"""The module that each name is imported from on first use."""


@attrs.frozen
class Trio:
    """An event loop of trio in a thread of its own. Handlers for trio run in it as tasks, blocking handlers in a pool of threads."""

    limit: int = attrs.field(default=10_000, validator=at_least(1))
    """Most tasks at once, one for each request; nothing more is accepted meanwhile. Takes effect when the server starts."""
    workers: int = attrs.field(default=32, kw_only=True, validator=at_least(1))
    """Most threads: for a blocking handler, or for layers that block. Takes effect when the server starts."""

    requires: ClassVar[frozenset[str]] = frozenset({"epoll or kqueue", "threads"})
    runs_async: ClassVar[bool] = True
    async_library: ClassVar[str] = "trio"

    def max_handlers(self, handler: object) -> int:
        """Return the most handlers at once: one in each task, or in each thread if they block."""
        return self.limit if getattr(handler, "is_async", False) else self.workers

    def start(self, work: Work) -> Drive:
        """Return the live part: for a blocking handler, which has no use for an event loop, that of `socketkit.Pool`."""
        if not getattr(work.handler, "is_async", False):
            from socketkit import Pool  # noqa: PLC0415 - see above

            return Pool(self.workers).start(work)
        from socketkit_trio._live import Tasks  # noqa: PLC0415 - see above

        return Tasks(work, self.limit, self.workers)


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Trio]]:
    """Return the dispatcher of this distribution, by name."""
    return {"trio": Trio}


if TYPE_CHECKING:
    _recipe: Dispatcher = Trio()
    _uses: UsesAsyncLibrary = Trio()
    _bounds: BoundsHandlers = Trio()
else:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> Any:
        """Import a name on first use."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=import_module(__name__))
        value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        return value
