"""The options of dispatchers whose workers serve on their own and are replaced."""

from __future__ import annotations

import os
from typing import Any

import attrs

from socketkit.seams import Dispatcher, Seconds
from socketkit.seams.validators import at_least, seconds, seconds_or_none, some_seconds_or_none


def _inner(_recipe: Any, field: Any, value: Any) -> None:
    is_recipe = callable(getattr(value, "start", None)) and not isinstance(value, type)
    if value is not None and not is_recipe:
        raise ValueError(f"{field.name} must be a dispatcher, such as Sync(), not {value!r}")


def _part_of_one(_recipe: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{field.name} must be a number from 0 to less than 1, not {value!r}")


@attrs.frozen
class Supervised:
    """Base of recipes with a fixed number of workers, each serving with an inner dispatcher. A worker that ends is replaced."""

    workers: int = attrs.field(default=0, validator=at_least(0))
    """Number of workers; 0: one for each core available to this program."""
    inner: Dispatcher | None = attrs.field(default=None, validator=_inner)
    """The dispatcher that each worker uses; None: the server's default dispatcher."""
    max_requests: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """Replace a worker after about this many requests, each request of a conversation included; None: never."""
    max_age: Seconds | None = attrs.field(default=None, kw_only=True, validator=some_seconds_or_none)
    """Replace a worker after about this long; None: never."""
    jitter: float = attrs.field(default=0.1, kw_only=True, validator=_part_of_one)
    """Largest fraction by which `max_requests` and `max_age` are reduced at random, so that workers are not all replaced at once."""
    drain: Seconds | None = attrs.field(default=30.0, kw_only=True, validator=seconds_or_none)
    """How long a worker that is being replaced may take to finish its requests; None: no limit."""
    boot_timeout: Seconds = attrs.field(default=30.0, kw_only=True, validator=seconds)
    """How long a worker may take before it accepts requests."""
    boots: int = attrs.field(default=5, kw_only=True, validator=at_least(1))
    """The server stops with a `BootError` after this many workers in a row fail to boot."""

    @property
    def count(self) -> int:
        """Number of workers that serve together. Each gets an equal share of the server's limits."""
        return self.workers or cores()

    def max_handlers(self, handler: Any) -> int | None:
        """Return the most handlers at once, in all workers together. None: the inner dispatcher does not say, or is the usual one."""
        bound = getattr(self.inner, "max_handlers", None)
        each: int | None = None if bound is None else bound(handler)
        return None if each is None else self.count * each

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of request that the inner dispatcher runs."""
        return tuple(getattr(self.inner, "kinds", ("stream", "datagram")))

    @property
    def runs_async(self) -> bool:
        """Whether the inner dispatcher runs asynchronous handlers."""
        return getattr(self.inner, "runs_async", False)

    @property
    def async_library(self) -> str:
        """The library whose event loop the inner dispatcher has."""
        return getattr(self.inner, "async_library", "asyncio")

    def check(self, handler: Any) -> None:
        """Raise whatever the inner dispatcher's own check raises for this handler."""
        refuse = getattr(self.inner, "check", None)
        if refuse is not None:
            refuse(handler)


def cores() -> int:
    """Return how many cores this program may use."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
