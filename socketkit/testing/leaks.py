"""An account of a process's resources, taken before and after a test: anything found only afterwards was left behind.

It covers descriptors, threads, child processes, signal handlers, the signal wake-up descriptor, the umask and the working
directory. Descriptors and children are read from /proc; without /proc they are not covered. The descriptor that libffi opens once
for each process, when something first imports `ctypes`, is not counted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from socketkit._system import logs

GRACE = 2.0
"""Seconds that ending threads get in total."""

_SIGNALS = tuple(map(int, signal.valid_signals() - {getattr(signal, "SIGALRM", None)}))  # SIGALRM is used by the tests' timeout


@attrs.frozen
class Account:
    """The resources of this process at one moment, as text that a failing test can show. `left_since` compares it with now."""

    descriptors: dict[str, str]
    threads: dict[threading.Thread, str]
    children: dict[int, str]
    signals: dict[str, str]
    umask: str
    cwd: str

    @classmethod
    def take(cls) -> Account:
        """Return the current account."""
        return cls(_descriptors(), _threads(), _children(), _signals(), _umask(), str(Path.cwd()))

    def left_since(self, forgiven: frozenset[str] = frozenset()) -> list[str]:
        """Return a line for each resource acquired since this account and still held, after giving threads `GRACE` to end.

        forgiven: the names of the fields to ignore.
        """
        end = time.monotonic() + GRACE
        for thread in _threads().keys() - self.threads.keys():
            if "threads" not in forgiven:
                while thread.ident is None and time.monotonic() < end:  # not started yet, so it cannot be joined
                    time.sleep(0.001)
                thread.join(max(0.0, end - time.monotonic()))
        found = self._compare(forgiven)
        if found:
            gc.collect()  # frees objects in reference cycles; an unclosed file or socket among them warns, which fails the test
            logs.flush()  # collecting may have logged something
            found = self._compare(forgiven)
        return found

    def restore(self) -> None:
        """Restore the umask and the working directory, which would affect later tests."""
        os.umask(int(self.umask, 8))
        os.chdir(self.cwd)

    def _compare(self, forgiven: frozenset[str]) -> list[str]:
        now, found = Account.take(), []
        for noun in ("descriptors", "threads", "children", "signals"):
            before, after = getattr(self, noun), getattr(now, noun)
            by_name = noun in {"threads", "children"}  # their descriptions change while they live
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
        with contextlib.suppress(FileNotFoundError):  # the descriptor used for the listing itself
            target = entry.readlink()
            if not target.name.startswith("libffi.so"):  # libffi maps its trampolines from its own file; source: libffi, src/tramp.c
                targets[entry.name] = f"{entry.name} -> {target}"
    return targets


def _threads() -> dict[threading.Thread, str]:
    every = threading.enumerate()
    return {thread: repr(thread) for thread in every if not isinstance(thread, threading._DummyThread)}  # noqa: SLF001 - not started here


def _children() -> dict[int, str]:
    """Return this process's children, including zombies."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, ChildProcessError):
        return {}
    children = {}
    for number in _candidates():
        with contextlib.suppress(OSError):  # it ended meanwhile
            pid, _, rest = Path(f"/proc/{number}/stat").read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            state, parent, *_ = fields.split()
            if int(parent) == os.getpid():
                children[int(pid)] = f"{pid} ({name}, state {state})"
    return children


def _candidates() -> Iterator[str]:
    """Yield the pids of this process's children; those of all processes, where the kernel does not list them by parent (proc(5))."""
    if not Path("/proc/thread-self/children").exists():
        yield from (entry.name for entry in _entries("/proc") if entry.name.isdecimal())
    for thread in _entries("/proc/self/task"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield from (thread / "children").read_text().split()


def _entries(folder: str) -> list[Path]:
    """Return the entries of a proc(5) directory, without accessing them as `Path.glob` would: they may already be gone."""
    try:
        return list(Path(folder).iterdir())
    except OSError:  # no such directory
        return []


def _signals() -> dict[str, str]:
    handlers = {}
    for number in _SIGNALS:
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
