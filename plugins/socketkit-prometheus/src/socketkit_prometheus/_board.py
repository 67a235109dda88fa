"""Numbers that all processes of a server count together, in memory that they share."""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # a platform without fork: there is one process
    FORKS = False
else:
    FORKS = hasattr(os, "fork")

SLOTS = 4096
"""Most processes that count at the same time. A slot that was never used takes no memory."""

WORD = 8
"""Bytes of a number. Each is one aligned word, so no process ever reads half of one."""


class Slot:
    """The numbers that this process counts. Hold `lock` to change them; a reader needs no lock."""

    __slots__ = ("lock", "words")

    def __init__(self, words: memoryview) -> None:
        self.lock = threading.Lock()
        self.words = words


class Board:
    """Slots of numbers in shared memory: each process writes to its own, and any process can read the sums.

    A process owns a slot while it holds a record lock on one byte of a file, which the system releases when the process ends, however
    that happens (fcntl(2)). The numbers stay, and the next owner counts on from them, so the sums never decrease. A fork does not pass
    on such locks: a child takes a slot of its own the first time that it counts.

    Call `open` before the first process is forked that shares the memory, and `close` when none is left. The numbers outlive both.

    size: how many numbers a slot has, without the first, which is the board's own.
    settle: called with the words of a slot whose owner has ended, before they are used again or read.
    """

    def __init__(self, size: int, settle: Callable[[memoryview], None]) -> None:
        self.slot: Slot | None = None
        """The slot of this process; None: it has to `claim` one first."""
        self._length = 1 + size
        self._settle = settle
        self._memory: memoryview | None = None
        self._file: weakref.finalize[Any, Any] | None = None  # closes the file with the locks; None: it is not open
        self._locks = -1  # the descriptor of that file
        self._own: tuple[int, Slot] | None = None  # the slot of this process and its number, kept while the board is closed
        self._gate = threading.Lock()

    def open(self) -> None:
        """Make what is shared, unless it is there. Raises: OSError."""
        with self._gate:
            self._open()

    def close(self) -> None:
        """Close the file with the locks, unless another process counts. Whoever counts next opens a new one."""
        with self._gate:
            if self._file is not None and self._memory is not None and not self._settle_ended(self._memory):
                self._file()
                self._file, self._locks, self.slot = None, -1, None

    def claim(self) -> Slot:
        """Return the slot of this process, after taking one if necessary. Raises: OSError, if no slot is free."""
        with self._gate:
            memory = self._open()
            if self._own is None:
                taken = next(((number, words) for number, words in self._slots(memory) if self._take(number)), None)
                if taken is None:
                    raise OSError(f"{SLOTS} processes count already; let the server run fewer at once")
                number, words = taken
                self._settle(words[1:])
                words[0] = True
                self._own = number, Slot(words[1:])
            self.slot = self._own[1]
            return self.slot

    def sums(self) -> list[int]:
        """Return the sum of each number over all processes, those that have ended included."""
        with self._gate:
            memory = self._memory
            if memory is None:
                return [0] * (self._length - 1)
            self._settle_ended(memory)
            rows = [words[1:].tolist() for _, words in self._used(memory)]
        return [sum(column) for column in zip([0] * (self._length - 1), *rows, strict=True)]

    def leave(self) -> None:
        """In a child that was just forked: leave the slot to the parent."""
        self.slot, self._own, self._gate = None, None, threading.Lock()

    # inside

    def _open(self) -> memoryview:
        size = self._length * WORD
        if self._memory is None:
            self._memory = memoryview(mmap.mmap(-1, SLOTS * size) if FORKS else bytearray(size)).cast("Q")
            _boards.add(self)
        if FORKS and self._file is None:
            self._locks = _lock_file()
            self._file = weakref.finalize(self, os.close, self._locks)
            if self._own is not None:
                self._take(self._own[0])
        return self._memory

    def _slots(self, memory: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield the number and the words of each slot. The first word says whether the slot has ever had an owner."""
        for number, start in enumerate(range(0, len(memory), self._length)):
            yield number, memory[start : start + self._length]

    def _used(self, memory: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield those that have ever had an owner. Slots are taken in order, so these are the first."""
        return itertools.takewhile(lambda slot: slot[1][0], self._slots(memory))

    def _settle_ended(self, memory: memoryview) -> bool:
        """Settle the slots whose owners have ended; return whether any other process counts. A board that is closed is settled."""
        if self._file is None:
            return False
        own = None if self._own is None else self._own[0]
        others = False
        for number, words in self._used(memory):
            if number == own:
                continue
            if self._take(number):
                self._settle(words[1:])
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)
            else:
                others = True
        return others

    def _take(self, number: int) -> bool:
        """Lock a slot, if no other process owns it; return whether it is locked."""
        if not FORKS:
            return True
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True


def _lock_file() -> int:
    """Return the descriptor of a new file without a name. Programs that this process executes do not get it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("socketkit-prometheus")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_boards: weakref.WeakSet[Board] = weakref.WeakSet()


def _leave_all() -> None:
    for board in _boards:
        board.leave()


if FORKS:
    os.register_at_fork(after_in_child=_leave_all)
