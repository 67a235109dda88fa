"""Serving that ends well: signals stop it, what runs may finish, and what does not is forced."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType

import attrs

from socketkit._system import activation, notify
from socketkit.lifecycles._restart import Restart
from socketkit.logs import Log
from socketkit.seams import Seconds, Serving
from socketkit.seams.stats import DrainReport
from socketkit.seams.validators import seconds, seconds_or_none

log = Log(__name__)


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

    restart: bool = attrs.field(default=True, kw_only=True)
    """On SIGUSR2 start the program anew with the sockets of this one, and stop when it serves. Only with `signals`, and if the
    program has no handler of its own for that one."""
    restart_timeout: Seconds = attrs.field(default=60.0, kw_only=True, validator=seconds)
    """How long a new generation may take until it serves; after that it is ended, and this one goes on."""

    def serve(self, serving: Serving) -> DrainReport:
        """Run and drain; return the report. In the main thread, also hear signals and speak for the process to its service manager."""
        if threading.current_thread() is not threading.main_thread():
            return self._serve(serving, lambda: None)
        restart = _free(_RESTART) if self.signals and self.restart else ()
        foreground = _Foreground(serving, Restart(serving, self.restart_timeout, self.drain) if restart else None)
        with (
            foreground.hearing(_STOP if self.signals else (), foreground.on_stop),
            foreground.hearing(restart, foreground.on_restart),
        ):
            return self._serve(serving, foreground.end)

    def _serve(self, serving: Serving, ending: Callable[[], object]) -> DrainReport:
        try:
            serving.run()
        finally:
            ending()
            report = serving.drain(self.drain)
        return report


_STOP = (signal.SIGINT, signal.SIGTERM)
_RESTART = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") and hasattr(os, "posix_spawn") else ()


def _free(numbers: Sequence[signal.Signals]) -> Sequence[signal.Signals]:
    """Return those of the signals that the program does not use itself."""
    return [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]


class _Foreground:
    """Serving in the main thread: it gets the process's signals, and its readiness is the process's."""

    def __init__(self, serving: Serving, handover: Restart | None) -> None:
        self._serving = serving
        self._handover = handover
        self._pid = os.getpid()
        self._received = 0  # signals to stop
        self._was_ready = False
        self._told = False  # the service manager, that this process stops
        serving.on_ready(self._ready)
        limit = notify.watchdog()
        if limit is not None:
            serving.on_ready(notify.ping, limit / 2)

    @contextlib.contextmanager
    def hearing(self, numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
        """Have these signals handled inside the block."""
        previous = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield
        finally:
            for number, before in previous.items():
                signal.signal(number, before if before is not None else signal.SIG_DFL)

    def on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Stop, the second time at once; the third time leave."""
        if os.getpid() != self._pid:  # a child forked for one request: Ctrl-C reaches it too, but its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self._received += 1
        if self._received > 2:  # noqa: PLR2004 - stop, force, leave
            os._exit(128 + number)
        self._tell_stopping()
        self._serving.stop(None if self._received == 1 else 0.0)

    def on_restart(self, _number: int, _frame: FrameType | None) -> None:
        """Hand over to a new generation."""
        if self._handover is not None and os.getpid() == self._pid:
            self._handover.ask()

    def end(self) -> None:
        """Take notice that no more requests are taken."""
        if self._handover is not None:
            self._handover.end()
        self._tell_stopping()

    def _ready(self) -> None:
        self._was_ready = True
        unclaimed = activation.close_unclaimed()
        if unclaimed:
            log.warning("nobody listens any more on %s", ", ".join(unclaimed))
        if not activation.report_ready():  # else the generation before speaks for both, until its service manager knows this one
            notify.ready()

    def _tell_stopping(self) -> None:
        speaks_for_service = self._was_ready and not (self._handover is not None and self._handover.done)
        if speaks_for_service and not self._told:
            self._told = True
            notify.stopping()
