"""Signals that arrive before a server can act on them: they are held, and delivered to the server's handler when it has one."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Held:
    """A handler that stands in until a server handles the signal. It only remembers that one has arrived."""

    def __init__(self) -> None:
        self.arrived = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.arrived = True


def hold(*names: str) -> None:
    """Hold the signals of these names that the system has and that have their default action. Call it in the main thread."""
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, Held())


def is_free(number: int) -> bool:
    """Return whether no code of the program handles the signal: it has its default action, or is held."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(handler, Held)


def deliver(number: int, before: Any) -> None:
    """Send this process a signal again that the handler `before` has held. Call it when the signal has its handler."""
    if isinstance(before, Held) and before.arrived:
        before.arrived = False
        os.kill(os.getpid(), number)


def release(number: int) -> None:
    """Give a held signal its default action, which also meets one that has arrived."""
    before = signal.getsignal(number)
    if isinstance(before, Held):
        signal.signal(number, signal.SIG_DFL)
        deliver(number, before)
