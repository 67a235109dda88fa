"""How serving starts, stops and drains: a lifecycle's recipe, and the run that it is given."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from socketkit.seams.stats import DrainReport


class State(enum.Enum):
    """Where a server is in its life. FAILED is reached from any other; a stopped or failed server may be started again."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Lifecycle(Protocol):
    """Recipe: how serving starts, stops and drains. It neither accepts nor runs handlers.

    One with an attribute `drain`, seconds or None, thereby says how long closing a server waits for running requests. One with an
    attribute `lame_duck`, seconds, has a server that is told to stop go on for so long before `Serving.run` returns.
    """

    def serve(self, serving: Serving, /) -> DrainReport | None:
        """Run the server once, from `serving.run()` to the last request, in the calling thread.

        Returns: the report of the drain, or None where there was none.
        """
        ...


class Serving(Protocol):
    """One run of a server, as a lifecycle sees it."""

    def run(self) -> None:
        """Take requests until stopped; return then. Raises what ended serving early."""
        ...

    def drain(self, seconds: float | None, /, *, queue: bool = True) -> DrainReport:
        """End it well: serve what has come by now, close the listeners and who is idle, let running requests finish for `seconds`,
        then force them; release everything.

        queue: what has come includes what the kernel has queued. False where somebody else goes on to serve the same listeners.
        """
        ...

    def stop(self, drain: float | None = None, /) -> None:
        """Ask for the end of `run`, or shorten the drain to `drain` seconds from now.

        Legal in a signal handler, from any thread and at any time: it stores a number and writes one byte. With 0 everything is
        forced at once; otherwise `run` first goes on for the `lame_duck` of the lifecycle, and is not ready any more meanwhile.
        """
        ...

    def on_ready(self, callback: Callable[[], None], every: float | None = None, /) -> None:
        """Have `callback` called when requests are taken for the first time, and then every so many seconds for as long as they are.

        It is called by whoever takes requests, so that it is not called while nobody can. Call this before `run`.
        """
        ...

    def hand_over(self) -> None:
        """As `stop`, for listeners that somebody else takes requests from by now: what waits in the kernel is left to him.

        There is no lame duck. Then call `drain` as ever. Legal wherever `stop` is.
        """
        ...
