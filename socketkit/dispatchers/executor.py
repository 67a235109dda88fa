"""Units of work run by any `concurrent.futures.Executor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from socketkit.dispatchers._parking import ParkingOptions, own_first
from socketkit.handlers.base import unwrapped
from socketkit.seams import Work
from socketkit.seams.validators import at_least

if TYPE_CHECKING:
    from socketkit.dispatchers._executor import ExecutorDriver


def _factory(_recipe: object, _field: object, value: object) -> None:
    named = isinstance(value, str) and all(value.partition(":"))
    if not named and not (callable(value) and not isinstance(value, str)):
        raise ValueError(f"factory must be module:name, or a callable that returns an executor, not {value!r}")


_USUAL = "concurrent.futures:ThreadPoolExecutor"  # the interpreter waits for its threads, whatever a program does
_DAEMON = "socketkit.dispatchers._executor:DaemonThreads"


@attrs.frozen(field_transformer=own_first)
class Executor(ParkingOptions):
    """Requests run in a `concurrent.futures` executor: threads, processes, or another library's implementation.

    Connections occupy no thread before their first byte arrives or between the requests of a conversation.
    """

    factory: Any = attrs.field(default=_USUAL, validator=_factory)
    """Callable that takes no arguments and returns the executor, or its ``module:name``, imported when the server starts.
    The server owns the executor and shuts it down. If the executor breaks, the server calls the factory again."""
    limit: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """Most requests at once; nothing more is accepted meanwhile. None: the executor's number of workers, or 32 if it is unknown."""

    def max_handlers(self, handler: Any) -> int | None:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once. None: only the executor knows."""
        return self.limit

    def daemonized(self) -> Executor:
        """Return the recipe with daemon threads in place of the default executor; an executor that was asked for stays."""
        return attrs.evolve(self, factory=_DAEMON) if self.factory == _USUAL else self

    def check(self, handler: Any) -> None:
        """Raise IncompatibleError if it is already clear that the handler cannot run in the executor, or ConfigError if there is none."""
        from socketkit.dispatchers import _executor, _pools  # noqa: PLC0415 - they import a lot that few programs need

        is_standard = isinstance(self.factory, str) and self.factory.startswith("concurrent.futures:")  # importing that has no effects
        factory = _executor.find(self.factory) if is_standard else self.factory
        kind = unwrapped(factory)
        if isinstance(kind, type):
            _pools.check(kind, unwrapped(handler), getattr(factory, "keywords", {}).get("mp_context"))

    def start(self, work: Work) -> ExecutorDriver:
        """Return the live part. Raises: ConfigError if no executor can be made, IncompatibleError."""
        from socketkit.dispatchers._executor import ExecutorDriver  # noqa: PLC0415 - as above

        return ExecutorDriver(self, work)
