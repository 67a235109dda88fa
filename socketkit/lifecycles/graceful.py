"""Serving that ends well: signals stop it, what runs may finish, and what does not is forced."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import attrs

from socketkit.recipes import seconds, seconds_or_none
from socketkit.seams import Seconds, Serving
from socketkit.stats import DrainReport


@attrs.frozen
class Graceful:
    """Stop on SIGINT and SIGTERM, close the listeners, let running requests finish for `drain` seconds, then shut them down.

    Signals are handled only while the main thread serves, and the handlers that were there come back afterwards. The first signal
    starts the lame duck and after that the drain, the second ends both at once, the third leaves the process with status 128 + signal.
    """

    drain: Seconds | None = attrs.field(default=30.0, validator=seconds_or_none)
    """How long running requests may go on; None: as long as they like."""
    signals: bool = attrs.field(default=True, kw_only=True)
    """False: leave all signals to the program."""
    lame_duck: Seconds = attrs.field(default=0.0, kw_only=True, validator=seconds)
    """How long the server goes on taking requests when it is told to stop; `Server.ready` is false by then, for those who ask."""

    def serve(self, serving: Serving) -> DrainReport:
        """Run and drain; return the report."""
        with self._handling(serving):
            try:
                serving.run()
            finally:
                report = serving.drain(self.drain)
        return report

    @contextlib.contextmanager
    def _handling(self, serving: Serving) -> Iterator[None]:
        if not self.signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        received, server = 0, os.getpid()

        def on_signal(number: int, _frame: FrameType | None) -> None:
            nonlocal received
            if os.getpid() != server:  # a child forked for one request: Ctrl-C reaches it too, but its parent decides
                if number == signal.SIGTERM:
                    os._exit(128 + number)
                return
            received += 1
            if received > 2:  # noqa: PLR2004 - stop, force, leave
                os._exit(128 + number)
            serving.stop(None if received == 1 else 0.0)

        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
