"""Threads that run units of work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue

from socketkit.logs import Log
from socketkit.seams import Unit

log = Log("socketkit_dask")


class UnitThreads:
    """Runs each unit in a thread of its own. Threads that have become idle run the next ones, until `close`.

    freed: called after each unit, in the thread that ran it.
    """

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed = freed
        self._changed = threading.Condition()
        self._busy = 0
        self._inside: set[int] = set()
        """Identifiers of threads that run a unit."""
        self._threads = 0
        self._units: SimpleQueue[Unit | None] = SimpleQueue()

    @property
    def busy(self) -> int:
        """The number of units that run."""
        return self._busy

    @property
    def is_idle(self) -> bool:
        """Whether no unit runs."""
        return not self._busy

    def give(self, unit: Unit) -> None:
        """Run a unit. Call this from one thread at a time, which runs the unit itself if the system has no thread to give."""
        with self._changed:
            self._busy += 1
        if self._busy > self._threads and not self._hire() and not self._threads:
            self._run(unit)
        else:
            self._units.put(unit)

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing runs, apart from a unit in the calling thread; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy == (threading.get_ident() in self._inside), timeout)

    def close(self) -> None:
        """Let each thread end once it is idle."""
        threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._units.put(None)

    def _hire(self) -> bool:
        thread = threading.Thread(target=self._serve, name=f"socketkit-dask-{self._threads + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("cannot start another thread, so only %d run: %s", self._threads, error)
            return False
        self._threads += 1
        return True

    def _serve(self) -> None:
        while (unit := self._units.get()) is not None:
            self._run(unit)
            del unit  # keep no reference to a finished request

    def _run(self, unit: Unit) -> None:
        self._inside.add(threading.get_ident())
        try:
            copy_context().run(unit)  # no request sees the context variables of another
        except BaseException:
            log.exception("a unit of work raised an error; its thread continues")
        finally:
            self._inside.discard(threading.get_ident())
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            self._freed()
