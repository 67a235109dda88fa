"""Units of work handed to any `concurrent.futures.Executor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from socketkit.handlers.base import unwrapped
from socketkit.seams import Seconds, Work
from socketkit.seams.validators import at_least, seconds, seconds_or_none

if TYPE_CHECKING:
    from socketkit.dispatchers._executor import ExecutorDriver


def _factory(_recipe: object, _field: object, value: object) -> None:
    named = isinstance(value, str) and all(value.partition(":"))
    if not named and not (callable(value) and not isinstance(value, str)):
        raise ValueError(f"factory must be module:name, or a callable that returns an executor, not {value!r}")


@attrs.frozen
class Executor:
    """Requests run in an executor of the standard library's kind: threads, processes, or what another library makes of it.

    Connections wait without a thread until their first byte arrives, and between the requests of a conversation.
    """

    factory: Any = attrs.field(default="concurrent.futures:ThreadPoolExecutor", validator=_factory)
    """What is called without arguments for the executor: a callable, or ``module:name``, which is imported when the server starts.
    The executor then belongs to the server, which shuts it down; when it breaks, the factory is called again."""
    limit: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """The most requests at once; while there are so many nothing is accepted. None: as many as the executor has workers, or 32."""
    defer: Seconds = attrs.field(default=0.01, kw_only=True, validator=seconds)
    """How long a new connection may wait for its first byte before its handler starts anyway."""
    idle: Seconds | None = attrs.field(default=75.0, kw_only=True, validator=seconds_or_none)
    """How long a conversation may wait for its next request before it is closed; None: for ever."""
    max_inline: int = attrs.field(default=10, kw_only=True, validator=at_least(1))
    """Requests that one conversation may make in a row while others wait."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def check(self, handler: Any) -> None:
        """Raise IncompatibleError if it can be told already that the handler cannot run there."""
        kind = unwrapped(self.factory)
        if isinstance(kind, type):
            from socketkit.dispatchers import _executor  # noqa: PLC0415 - it brings much with it, which few programs need

            if _executor.is_processes(kind):
                _executor.check(unwrapped(handler), getattr(self.factory, "keywords", {}).get("mp_context"))

    def start(self, work: Work) -> ExecutorDriver:
        """Return the live part. Raises: ConfigError when there is no executor to be had, IncompatibleError."""
        from socketkit.dispatchers._executor import ExecutorDriver  # noqa: PLC0415 - as above

        return ExecutorDriver(self, work)
