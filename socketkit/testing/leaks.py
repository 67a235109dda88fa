"""The account of what a process holds, taken before and after a test: what is there only afterwards was left behind.

Covered: descriptors, threads, child processes, signal handlers and the signals' wake-up descriptor, the umask and the working
directory. Descriptors and children are read from /proc: where there is none, they are not covered.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from pathlib import Path

import attrs

from socketkit._system import logs

GRACE = 2.0
"""Seconds that threads which are about to end get, all together."""


@attrs.frozen
class Account:
    """What this process holds at one moment, in words that a failing test can show. Two of them are compared; see `left_since`."""

    descriptors: dict[str, str]
    threads: dict[threading.Thread, str]
    children: dict[int, str]
    signals: dict[str, str]
    umask: str
    cwd: str

    @classmethod
    def take(cls) -> Account:
        """Return the account of this moment."""
        return cls(_descriptors(), _threads(), _children(), _signals(), _umask(), str(Path.cwd()))

    def left_since(self, forgiven: frozenset[str] = frozenset()) -> list[str]:
        """Return a sentence for each thing that this process holds now and did not hold then, after giving it time to go."""
        end = time.monotonic() + GRACE
        for thread in _threads().keys() - self.threads.keys():
            if "threads" not in forgiven:
                while thread.ident is None and time.monotonic() < end:  # about to be started, and not to be joined until then
                    time.sleep(0.001)
                thread.join(max(0.0, end - time.monotonic()))
        found = self._compare(forgiven)
        if found:
            gc.collect()  # what only a reference cycle keeps is as good as gone; an unclosed file or socket warns, which fails the test
            logs.flush()  # which may have had something to say
            found = self._compare(forgiven)
        return found

    def restore(self) -> None:
        """Put back what would spoil the tests that follow: the umask and the working directory."""
        os.umask(int(self.umask, 8))
        os.chdir(self.cwd)

    def _compare(self, forgiven: frozenset[str]) -> list[str]:
        now, found = Account.take(), []
        for noun in ("descriptors", "threads", "children", "signals"):
            before, after = getattr(self, noun), getattr(now, noun)
            by_name = noun in {"threads", "children"}  # what is said of them changes while they live
            new = [key for key in after if key not in before or (not by_name and after[key] != before[key])]
            found += [f"{noun}: {after[key]}" for key in new if noun not in forgiven]
        for noun in ("umask", "cwd"):
            before, after = getattr(self, noun), getattr(now, noun)
            if before != after and noun not in forgiven:
                found.append(f"{noun}: {after}, was {before}")
        return found


def _descriptors() -> dict[str, str]:
    targets = {}
    for entry in _entries("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            targets[entry.name] = f"{entry.name} -> {entry.readlink()}"
    return targets


def _threads() -> dict[threading.Thread, str]:
    every = threading.enumerate()
    return {thread: repr(thread) for thread in every if not isinstance(thread, threading._DummyThread)}  # noqa: SLF001 - not started here


def _children() -> dict[int, str]:
    """Return this process's children, the dead that nobody has waited for among them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, ChildProcessError):
        return {}
    children = {}
    for entry in _entries("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            pid, _, rest = (entry / "stat").read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            state, parent, *_ = fields.split()
            if int(parent) == os.getpid():
                children[int(pid)] = f"{pid} ({name}, state {state})"
    return children


def _entries(folder: str) -> list[Path]:
    """Return what a folder of proc(5) lists. None of it is looked at, as `Path.glob` would: it may be gone by then."""
    try:
        return list(Path(folder).iterdir())
    except OSError:  # there is no such folder
        return []


def _signals() -> dict[str, str]:
    handlers = {}
    for number in signal.valid_signals() - {getattr(signal, "SIGALRM", None)}:  # that one belongs to the tests' timeout
        with contextlib.suppress(ValueError):
            handlers[str(number)] = f"signal {number} is handled by {signal.getsignal(number)!r}"
    if threading.current_thread() is threading.main_thread():
        descriptor = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(descriptor)
        handlers["wakeup"] = f"signals wake descriptor {descriptor}"
    return handlers


def _umask() -> str:
    umask = os.umask(0o077)
    os.umask(umask)
    return f"{umask:03o}"
