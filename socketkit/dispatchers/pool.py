"""A fixed number of threads that take turns at the intake."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, ClassVar, Literal

import attrs

from socketkit._system.threads import SureThread
from socketkit._system.wakeup import Wakeup
from socketkit.logs import Log
from socketkit.seams import Seconds, Work
from socketkit.seams.limits import Limits
from socketkit.seams.parking import Parking
from socketkit.seams.validators import at_least, seconds, seconds_or_none

log = Log(__name__)


@attrs.frozen
class Pool:
    """A hard bound of threads. One that is free waits for a request, takes it, lets the next one wait, and runs what it took.

    Connections wait without a thread until their first byte arrives, and between the requests of a conversation.
    """

    workers: int = attrs.field(default=32, validator=at_least(1))
    """How many threads; each starts when all others are busy for the first time."""
    overflow: Literal["wait", "reject", "shed"] = attrs.field(
        default="wait", kw_only=True, validator=attrs.validators.in_(("wait", "reject", "shed"))
    )
    """While every thread is busy, or `connections` are open: let clients wait in the kernel's queue, or turn each new request away
    at once. shed: as wait, but close the conversation that has been idle longest if that makes room for a new connection."""
    connections: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """The most connections open at a time, those that wait without a thread included; None: as many as the server's limits say."""
    reply: str = attrs.field(default="", kw_only=True, validator=attrs.validators.instance_of(str))
    """What a client that is turned away gets to read, as UTF-8."""
    defer: Seconds = attrs.field(default=0.01, kw_only=True, validator=seconds)
    """How long a new connection may wait for its first byte before its handler starts anyway."""
    idle: Seconds | None = attrs.field(default=75.0, kw_only=True, validator=seconds_or_none)
    """How long a conversation may wait for its next request before it is closed; None: for ever."""
    max_inline: int = attrs.field(default=10, kw_only=True, validator=at_least(1))
    """Requests that one conversation may make in a row while others wait."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def start(self, work: Work) -> _Pool:  # noqa: ARG002 - units know their server
        """Return the live part."""
        return _Pool(self)


class _Pool:
    """Leader and followers: the thread with the baton waits at the intake, the others wait for the baton."""

    def __init__(self, recipe: Pool) -> None:
        self.runs_in_place = True
        self.parking = Parking(recipe.defer, recipe.idle, recipe.max_inline)
        self._recipe = recipe
        self._workers = recipe.workers
        self._rejects = recipe.overflow == "reject"
        self._reply = recipe.reply.encode()
        self._baton = threading.Lock()
        self._counting = threading.Lock()  # guards the three that follow
        self._threads: list[threading.Thread] = []
        self._free = 0  # how many of them wait for a request of this run
        self._busy = 0  # how many run one
        self._error: BaseException | None = None

    def narrow(self, limits: Limits) -> Limits:
        """Return the server's limits with the pool's own bound of connections in them, if it has one."""
        recipe = self._recipe
        if recipe.connections is None and recipe.overflow != "shed":
            return limits
        return limits.narrowed(recipe.connections, recipe.overflow, recipe.reply)

    def drive(self, open_intake: Callable[[], Any]) -> None:
        """Let the threads serve until the intake is stopped; meanwhile turn away what is too much, if that was asked for."""
        alarm = Wakeup()  # rung by a stop, by an error, and by the last free thread as it gets busy
        with contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            intake.on_stop(alarm.wake)
            self._alarm, self._intake = alarm, intake
            self._free, self._busy, self._error = 0, 0, None  # those who still work for a run before this one do not count
            try:
                self._add_thread()
                while not intake.stopped:
                    alarm.wait()
                    if self._rejects and self._full():
                        self._turn_away()
            finally:  # Ctrl-C may have come anywhere, as an exception
                intake.stop()
                with self._baton:  # from here on nobody is inside the intake
                    pass
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None) -> bool:
        """Wait until every thread has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in list(self._threads):  # which stay on the list meanwhile: somebody else may wait for them too
            if thread is threading.current_thread() or thread.ident is None:
                continue  # a handler closes its own server; or its start was interrupted
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
        return True

    def close(self) -> None:
        """Do nothing: what there is to release ended with `drive` and `wait`."""

    def _add_thread(self) -> None:
        thread = SureThread(target=self._serve, name=f"socketkit-pool-{len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        self._free += 1  # it may have taken a request before `start` returns
        try:
            thread.start()
        except RuntimeError:
            self._threads.remove(thread)
            self._free -= 1
            raise

    def _serve(self) -> None:
        """Be one of the threads: wait for the baton, take a unit, pass the baton on, run the unit."""
        intake = self._intake
        while not intake.stopped:
            try:
                with self._baton:
                    unit = intake.take()
                    if unit is not None:
                        self._get_busy()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever called `drive`
                self._error = error
                intake.stop()
                return
            if unit is None:
                continue
            try:
                copy_context().run(unit)  # so that no request sees another's context variables
            except BaseException:
                log.exception("a unit of work raised; its thread goes on")
            finally:
                self._get_free(intake)

    def _get_busy(self) -> None:
        with self._counting:
            self._busy += 1
            self._free -= 1
            if self._free:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]  # without those of a run before this one
            if len(self._threads) < self._workers:
                try:
                    self._add_thread()
                except RuntimeError as error:  # no more threads in this system: those we have will do
                    log.warning("only %d of %d threads: %s", len(self._threads), self._workers, error)
            elif self._rejects:
                self._alarm.wake()

    def _get_free(self, intake: Any) -> None:
        with self._counting:
            if intake is not self._intake:
                return  # another run has begun: this thread ends
            self._busy -= 1
            self._free += 1
        if self._rejects:
            self._intake.interrupt()  # the driver may be at the intake, turning away

    def _full(self) -> bool:
        with self._counting:
            return self._busy >= self._workers

    def _turn_away(self) -> None:
        """Hold the baton while no thread is free, and refuse what is new; conversations that go on wait for a thread."""
        going_on = []
        with self._baton:
            while self._full() and not self._intake.stopped:
                unit = self._intake.take()
                if unit is None:
                    continue
                if not self._full() or unit.begun:
                    going_on.append(unit)
                else:
                    unit.refuse("every thread is busy", self._reply)
            for unit in going_on:
                self._intake.again(unit)
