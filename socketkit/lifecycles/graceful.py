"""Serving that ends well: signals stop it, what runs may finish, and what does not is forced."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import attrs

from socketkit import notify
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
        """Run and drain; return the report. In the main thread, also hear signals and speak for the process to its service manager."""
        if threading.current_thread() is not threading.main_thread():
            return self._serve(serving, lambda: None)
        foreground = _Foreground(serving)
        with foreground.hearing(_STOP if self.signals else ()):
            return self._serve(serving, foreground.stopping)

    def _serve(self, serving: Serving, stopping: Callable[[], object]) -> DrainReport:
        try:
            serving.run()
        finally:
            stopping()
            report = serving.drain(self.drain)
        return report


_STOP = (signal.SIGINT, signal.SIGTERM)


class _Foreground:
    """Serving in the main thread: it gets the process's signals, and its readiness is the process's."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._pid = os.getpid()
        self._received = 0  # signals to stop
        self._is_stopping = False
        serving.on_ready(notify.ready)
        limit = notify.watchdog()
        if limit is not None:
            serving.on_ready(notify.ping, limit / 2)

    def stopping(self) -> None:
        """Tell the service manager, once."""
        if not self._is_stopping:
            self._is_stopping = True
            notify.stopping()

    @contextlib.contextmanager
    def hearing(self, numbers: Iterable[signal.Signals]) -> Iterator[None]:
        """Handle these signals inside the block."""
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child forked for one request: Ctrl-C reaches it too, but its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self._received += 1
        if self._received > 2:  # noqa: PLR2004 - stop, force, leave
            os._exit(128 + number)
        self.stopping()
        self._serving.stop(None if self._received == 1 else 0.0)
