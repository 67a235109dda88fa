"""Concurrency limits and worker threads for dispatchers that drive the intake."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import Context, copy_context

from socketkit._system.threads import SureThread
from socketkit.logs import Log
from socketkit.seams import Unit

log = Log("socketkit.dispatchers._crew")


def run_unit(unit: Unit, log: Log) -> None:
    """Run a unit in a context of its own, so that no request sees another's context variables. Log whatever it raises."""
    try:
        copy_context().run(unit)
    except BaseException:
        log.exception("a unit of work raised an error; its thread continues")


class ConcurrencyLimit:
    """Counts running units against a limit, which callers must check before they add one. Thread-safe.

    freed: called each time the count falls, usually in the thread that ran the unit.
    """

    def __init__(self, most: int, freed: Callable[[], None]) -> None:
        self.most = most
        self._freed = freed
        self._count = 0
        self._inside: set[int] = set()  # identifiers of threads that run a unit
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        return self._count >= self.most

    @property
    def is_idle(self) -> bool:
        return not self._count

    def others(self) -> int:
        """Return the number of running units, not counting one in the calling thread."""
        with self._changed:
            return self._count - (threading.get_ident() in self._inside)

    def begin(self) -> None:
        """Count one more unit. Call `run` or `end` for it later."""
        with self._changed:
            self._count += 1

    def run(self, unit: Unit) -> None:
        thread = threading.get_ident()
        self._inside.add(thread)
        try:
            run_unit(unit, log)
        finally:
            self._inside.discard(thread)
            self.end()

    def end(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
        self._freed()

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing runs, apart from a unit in the calling thread; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.others(), timeout)


class WorkerThreads(ConcurrencyLimit):
    """A concurrency limit with threads to run the units. Each starts when all others are busy, and stays until `close`."""

    def __init__(self, most: int, freed: Callable[[], None], name: str) -> None:
        super().__init__(most, freed)
        self._name = name
        self._threads = 0
        self._work: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()

    def give(self, unit: Unit) -> None:
        """Run a unit in one of the threads. Call this from one thread at a time.

        Raises: RuntimeError if not even the first thread can be started.
        """
        if self._count >= self._threads:
            self._hire()
        self.begin()
        self._work.put(unit)

    def close(self) -> None:
        """Let every thread end after its current unit."""
        threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._work.put(None)

    def _hire(self) -> None:
        thread = SureThread(target=self._serve, name=f"{self._name}-{self._threads + 1}", daemon=True)
        try:
            Context().run(thread.start)  # without the context variables of a request: see `BackgroundThread`
        except RuntimeError as error:
            if not self._threads:
                raise
            log.warning("cannot start another thread, so only %d of %d run: %s", self._threads, self.most, error)
        else:
            self._threads += 1

    def _serve(self) -> None:
        while True:
            unit = self._work.get()
            if unit is None:
                return
            self.run(unit)
            del unit  # keep no reference to a finished request
