"""A fixed number of threads that take turns waiting at the intake."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Literal

import attrs

from socketkit._system.threads import SureThread, join_all
from socketkit._system.wakeup import Wakeup
from socketkit.dispatchers._parking import ParkingOptions, own_first
from socketkit.dispatchers._workers import run_unit
from socketkit.logs import Log
from socketkit.seams import Refusal, Work
from socketkit.seams.limits import Limits
from socketkit.seams.validators import at_least

log = Log(__name__)

BUSY = Refusal("every thread is busy", "busy")

UNTIL_HOME = 1.0
"""Seconds until the driver leaves a thread behind that an accept still blocks, such as a `get_request` that speaks TLS."""


@attrs.frozen(field_transformer=own_first)
class Pool(ParkingOptions):
    """A hard limit on threads. A free thread waits for a request, takes it, hands the wait to the next free thread and runs the request.

    Connections occupy no thread before their first byte arrives or between the requests of a conversation.
    """

    workers: int = attrs.field(default=32, validator=at_least(1))
    """Number of threads. Each starts the first time that all others are busy."""
    overflow: Literal["wait", "reject", "shed"] = attrs.field(
        default="wait", kw_only=True, validator=attrs.validators.in_(("wait", "reject", "shed"))
    )
    """What happens while every thread is busy or `connections` are open. wait: clients wait in the kernel's queue. reject: new requests
    are refused at once. shed: as wait, but the longest-idle conversation is closed if that makes room for a new connection."""
    connections: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """Most connections open at a time, including those without a thread; None: whatever the server's limits allow."""
    reply: str = attrs.field(default="", kw_only=True, validator=attrs.validators.instance_of(str))
    """Text sent to a refused client, encoded as UTF-8."""

    def max_handlers(self, handler: Any) -> int:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once: one in each thread."""
        return self.workers

    def start(self, work: Work) -> _Pool:  # noqa: ARG002 - units already refer to their server
        """Return the live part."""
        return _Pool(self)


class _Pool:
    """Leader and followers: the thread that holds the baton waits at the intake; the others wait for the baton."""

    def __init__(self, recipe: Pool) -> None:
        self.runs_in_place = True
        self.parking = recipe.parking
        self._recipe = recipe
        self._workers = recipe.workers
        self._rejects = recipe.overflow == "reject"
        self._reply = recipe.reply.encode()
        self._baton = threading.Lock()
        self._counting = threading.Lock()  # guards the next three fields, and which run they belong to
        self._threads: list[threading.Thread] = []
        self._free = 0  # threads waiting for a request of this run
        self._busy = 0  # threads running a request
        self._error: BaseException | None = None

    def narrow(self, limits: Limits) -> Limits:
        recipe = self._recipe
        if recipe.connections is None and recipe.overflow != "shed":
            return limits
        return limits.narrowed(recipe.connections, recipe.overflow, recipe.reply)

    def drive(self, open_intake: Callable[[], Any]) -> None:
        """Refuse excess requests, if `overflow` is "reject", while the threads serve."""
        alarm = Wakeup()  # woken by a stop, by an error, and by the last free thread when it becomes busy
        with contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            intake.on_stop(alarm.wake)
            with self._counting:
                self._alarm, self._intake = alarm, intake
                self._free, self._busy, self._error = 0, 0, None  # threads still working for an earlier run do not count
            try:
                self._add_thread()
                while not intake.stopped:
                    alarm.wait(intake.housekeep())
                    if self._rejects and self._full():
                        self._turn_away()
            finally:  # Ctrl-C can raise an exception anywhere
                intake.stop()
                if self._baton.acquire(timeout=UNTIL_HOME):  # from here on, no thread is inside the intake
                    self._baton.release()
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None) -> bool:
        return join_all(list(self._threads), timeout)  # they stay on the list meanwhile: another caller may wait for them too

    def close(self) -> None:
        pass  # `drive` and `wait` have already released everything

    def _add_thread(self) -> None:
        name = f"socketkit-pool-{len(self._threads) + 1}"
        thread = SureThread(target=self._serve, args=(self._intake,), name=name, daemon=True)
        self._threads.append(thread)
        self._free += 1  # the thread may take a request before `start` returns
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._threads.remove(thread)
            self._free -= 1
            if not self._busy:  # this was the first
                raise
            log.warning("cannot start another thread, so only %d of %d run: %s", len(self._threads), self._workers, error)

    def _serve(self, intake: Any) -> None:
        while not intake.stopped:
            try:
                with self._baton:
                    unit = intake.take()
                    if unit is not None:
                        self._get_busy()
            except BaseException as error:  # noqa: BLE001 - `drive` raises it to its caller
                self._error = error
                intake.stop()
                return
            if unit is None:
                continue
            try:
                run_unit(unit, log)
            finally:
                self._get_free(intake)

    def _get_busy(self) -> None:
        with self._counting:
            self._busy += 1
            self._free -= 1
            if self._free:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]  # drop those of earlier runs
            if len(self._threads) < self._workers:
                self._add_thread()
            elif self._rejects:
                self._alarm.wake()

    def _get_free(self, intake: Any) -> None:
        with self._counting:
            if intake is not self._intake:
                return  # another run has begun, so this thread ends
            self._busy -= 1
            self._free += 1
        if self._rejects:
            self._intake.interrupt()  # the driver may be at the intake, refusing requests

    def _full(self) -> bool:
        with self._counting:
            return self._busy >= self._workers

    def _turn_away(self) -> None:
        """Hold the baton while no thread is free and refuse new requests; conversations already begun wait for a thread."""
        going_on = []
        with self._baton:
            while self._full() and not self._intake.stopped:
                unit = self._intake.take()
                if unit is None:
                    continue
                if not self._full() or unit.begun:
                    going_on.append(unit)
                else:
                    unit.refuse(BUSY, self._reply)
            for unit in going_on:
                self._intake.again(unit)
