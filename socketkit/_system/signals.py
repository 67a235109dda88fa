"""Signal handlers that the library sets in place of the program's. A process that the program forks has the program's again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeAlias

from socketkit._system import children
from socketkit._system.early_signals import Held, deliver

Handler: TypeAlias = Callable[[int, FrameType | None], object]

_programs: dict[int, Any] = {}
"""The program's handlers of the signals that the library handles. Used only in the main thread, as all of this module."""


def handle(number: int, handler: Handler) -> Any:
    """Handle a signal in this process from now on. Return the previous handler, or the default if that is not Python's to restore."""
    before: Any = signal.signal(number, handler)
    if before is None:
        before = signal.SIG_DFL
    _programs.setdefault(number, signal.SIG_DFL if isinstance(before, Held) else before)
    return before


def is_handled_here(number: int) -> bool:
    """Return whether this library handles the signal, and not the program."""
    return number in _programs


@contextlib.contextmanager
def handling(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handle signals in the block, also those that were held until now; afterwards restore the previous handlers."""
    programs = handlers.keys() - _programs.keys()
    previous = {number: handle(number, handler) for number, handler in handlers.items()}
    try:
        for number, before in previous.items():
            deliver(number, before)
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        for number in programs:
            _programs.pop(number, None)


def ignore(number: int) -> None:
    """Ignore a signal in this process, but not in the programs that it starts.

    They would inherit SIG_IGN, while exec gives a signal that is handled its default action again. Source: execve(2). System calls go
    on, even those of libraries that do not expect EINTR.
    """
    if signal.getsignal(number) is not signal.SIG_IGN:
        handle(number, _do_nothing)
        signal.siginterrupt(number, False)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


_held = threading.local()
"""The signal mask of a thread that is forking. A new process would lose a signal that arrives before it has the program's handlers."""


def _before_fork() -> None:
    if _programs:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _programs.keys())


def _after_fork() -> None:
    mask = vars(_held).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    if not children.is_forking():
        for number, handler in _programs.items():
            signal.signal(number, handler)
        _programs.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
