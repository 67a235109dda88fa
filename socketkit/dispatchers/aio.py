"""Handlers as coroutines, all in the one thread that serves; see `socketkit.handlers.coroutines`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

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
    """An event loop in the thread that serves: asynchronous handlers run in it as tasks, blocking ones in a pool of threads."""

    loop: Literal["asyncio", "uvloop"] = attrs.field(default="asyncio", validator=_installed)
    """Whose event loop: the standard library's, or that of uvloop, which ``pip install socketkit[uvloop]`` brings."""
    limit: int = attrs.field(default=10_000, kw_only=True, validator=at_least(1))
    """The most tasks, one for each request; while there are so many nothing is accepted."""
    workers: int = attrs.field(default=32, kw_only=True, validator=at_least(1))
    """The most threads for a blocking handler; while all are busy nothing is accepted."""
    slow: Seconds | None = attrs.field(default=0.1, kw_only=True, validator=seconds_or_none)
    """Warn when a handler keeps the loop from running for longer than this, and say where it stands; None: do not look."""

    requires: ClassVar[frozenset[str]] = frozenset({"epoll or kqueue", "threads"})
    runs_async: ClassVar[bool] = True

    def start(self, work: Work) -> EventLoop:
        """Return the live part."""
        from socketkit.dispatchers._aio import EventLoop  # noqa: PLC0415 - asyncio takes longer to import than all of socketkit

        return EventLoop(self, work)
