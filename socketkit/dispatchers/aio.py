"""Handlers as coroutines, all in the serving thread; see `socketkit.handlers.coroutines`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from socketkit.errors import ConfigError
from socketkit.seams import Seconds, Work
from socketkit.seams.validators import at_least, seconds_or_none

if TYPE_CHECKING:
    from socketkit.dispatchers._aio import EventLoop


def _installed(_recipe: object, _field: object, value: object) -> None:
    if value not in {"asyncio", "uvloop"}:
        raise ValueError(f"loop must be 'asyncio' or 'uvloop', not {value!r}")
    if value == "uvloop" and find_spec("uvloop") is None:
        raise ConfigError.of("uvloop is not installed; install socketkit[uvloop], or leave loop at 'asyncio'")


@attrs.frozen
class Asyncio:
    """An event loop in the serving thread. Asynchronous handlers run in it as tasks, blocking handlers in a pool of threads."""

    loop: Literal["asyncio", "uvloop"] = attrs.field(default="asyncio", validator=_installed)
    """Event loop to use: the standard library's, or uvloop's, installed by ``pip install socketkit[uvloop]``."""
    limit: int = attrs.field(default=10_000, kw_only=True, validator=at_least(1))
    """Most tasks at once, one for each request; nothing more is accepted meanwhile."""
    workers: int = attrs.field(default=32, kw_only=True, validator=at_least(1))
    """Most threads for a blocking handler; nothing is accepted while all are busy."""
    slow: Seconds | None = attrs.field(default=0.1, kw_only=True, validator=seconds_or_none)
    """Log a warning with the stack when a handler blocks the loop for longer than this; None: do not check."""

    requires: ClassVar[frozenset[str]] = frozenset({"epoll or kqueue", "threads"})
    runs_async: ClassVar[bool] = True

    def max_handlers(self, handler: Any) -> int:
        """Return the most handlers at once: one in each task, or in each thread if they block."""
        return self.limit if getattr(handler, "is_async", False) else self.workers

    def start(self, work: Work) -> EventLoop:
        """Return the live part."""
        from socketkit.dispatchers._aio import EventLoop  # noqa: PLC0415 - asyncio takes longer to import than all of socketkit

        return EventLoop(self, work)
