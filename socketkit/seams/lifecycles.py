"""How serving starts, stops and drains: a lifecycle's recipe, and the run that it controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from socketkit.seams.stats import DrainReport, InWork


class Lifecycle(Protocol):
    """Recipe: how serving starts, stops and drains. It neither accepts requests nor runs handlers.

    Two optional attributes: `drain` (seconds or None) says how long closing a server waits for running requests; `lame_duck`
    (seconds) says how long a server that is told to stop goes on serving before `Serving.run` returns.
    """

    def serve(self, serving: Serving, /) -> DrainReport | None:
        """Run the server once in the calling thread, from `serving.run()` to the end of the last request.

        Returns: the report of the drain; None if there was no drain.
        """


class Serving(Protocol):
    """One run of a server, as a lifecycle sees it."""

    def run(self) -> None:
        """Take requests until stopped, then return. Raises: whatever ended serving early."""

    def drain(self, seconds: float | None, /, *, queue: bool = True) -> DrainReport:
        """End the run and return a report of how its requests ended.

        Serves the requests that have arrived, closes listeners and idle connections, lets running requests finish for `seconds`
        (None: no limit), forces the rest, and releases everything.
        queue: also serve connections in the kernel's queue. False if another process goes on serving the same listeners.
        """

    def stop(self, drain: float | None = None, /) -> None:
        """Ask `run` to end, or shorten the drain to `drain` seconds from now.

        Safe in a signal handler, from any thread and at any time: it stores a number and writes one byte. With 0 all requests are
        forced at once. Otherwise `run` goes on for the lifecycle's `lame_duck` seconds first, and reports not ready meanwhile.
        """

    def in_work(self) -> InWork:
        """Return what is left to finish after `stop` or `hand_over`. Safe wherever `stop` is."""

    def on_ready(self, callback: Callable[[], None], every: float | None = None, /) -> None:
        """Call `callback` when the server first takes requests, and then every `every` seconds while it does; None: only once.

        The thread that takes requests calls it, so it is not called while no thread can. Call `on_ready` before `run`.
        """

    def renew(self) -> None:
        """Have the layers look for something new, such as certificates, soon, in this process and in its workers. Safe wherever `stop` is.

        Before the server takes requests this does nothing, because they look when it begins to.
        """

    def hand_over(self) -> None:
        """As `stop`, when another process already takes requests from the same listeners: leave the kernel's queue to that process.

        There is no lame duck. Call `drain` afterwards, as usual. Safe wherever `stop` is.
        """
