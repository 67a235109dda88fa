"""The live part of the asyncio dispatcher: an event loop that watches the intake, and a watchdog for the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from socketkit._system.threads import BackgroundThread, current_frames
from socketkit._system.wakeup import Wakeup
from socketkit.dispatchers._workers import WorkerThreads
from socketkit.logs import Log
from socketkit.seams import Address, Refusal, Request, Work
from socketkit.seams.parking import Parking

if TYPE_CHECKING:
    from socketkit.dispatchers.aio import Asyncio

log = Log("socketkit.dispatchers.aio")

UNITS_PER_TURN = 64
"""Most units taken before the loop continues with its tasks."""

AFTER_CANCEL = 0.5
"""Seconds that tasks get to end after they are cancelled because the loop closes."""

FRAMES = 8
"""Number of innermost stack frames that a warning shows."""


class EventLoop:
    """The live part. The serving thread makes the loop and runs it: in `drive`, then in `wait` until running requests end.

    The unit of an asynchronous handler is called in the loop, and `dispatch` starts its request as a task. The unit of a blocking
    handler is called in a worker thread, and `dispatch` runs its request there.
    """

    def __init__(self, recipe: Asyncio, work: Work) -> None:
        self.runs_in_place = not is_async(work.handler)
        self.parking = Parking() if self.runs_in_place else None
        self._recipe = recipe
        self._work = work
        self._crew = WorkerThreads(recipe.workers, self._freed, "socketkit-asyncio")
        self._tasks: set[asyncio.Task[None]] = set()
        self._turning = threading.Lock()  # held while a thread runs or closes the loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: Watchdog | None = None
        self._intake: Any = None  # while driving
        self._timer: asyncio.TimerHandle | None = None
        self._housekeeping: asyncio.TimerHandle | None = None  # the next call of `_keep_house`
        self._paused = False  # at the limit: the intake is not watched
        self._waiting = False  # `wait` is running the loop until everything has ended
        self._abandoned = False  # closed from inside the loop: `drive` waits for running requests, then closes it
        self._patience: float | None = None
        self._error: BaseException | None = None

    # --- driving -----------------------------------------------------------------------------------------------------

    def drive(self, open_intake: Callable[[], Any]) -> None:
        alarm = Wakeup()  # woken by a stop and by signals
        with self._turning, contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            loop = self._open_loop()
            intake.on_stop(alarm.wake)
            loop.add_reader(alarm.fileno(), self._look_around, alarm)
            self._intake = intake
            self._go_on(loop)
            self._keep_house(loop)
            try:
                loop.run_forever()
            finally:
                self._pause(loop)
                if self._housekeeping is not None:
                    self._housekeeping.cancel()
                self._intake, self._paused, self._housekeeping = None, False, None
                loop.remove_reader(alarm.fileno())
        if self._abandoned:
            self.wait(self._patience)
            self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = new_loop(self._recipe.loop)
            if self._recipe.slow is not None:
                self._watchdog = Watchdog(self._loop, self._recipe.slow)
        return self._loop

    def _look_around(self, alarm: Wakeup) -> None:
        alarm.clear()
        if self._intake.stopped:
            asyncio.get_running_loop().stop()

    def _take(self) -> None:
        """Take the units that are ready, at most `UNITS_PER_TURN`, so that the loop gets its turn in between."""
        intake, loop = self._intake, asyncio.get_running_loop()
        try:
            for _ in range(UNITS_PER_TURN):
                if self._is_full():
                    self._pause(loop)
                    return
                unit = intake.take(0)
                if unit is None:
                    break
                if is_async(self._work.handler):
                    unit()
                else:
                    self._give(unit)
        except BaseException as error:  # noqa: BLE001 - `drive` raises it to its caller
            self._fail(loop, error)
            return
        self._set_timer(loop, intake.due())

    def _keep_house(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do the server's periodic work in the loop, also while the intake is not watched."""
        try:
            seconds = self._intake.housekeep()
        except BaseException as error:  # noqa: BLE001 - `drive` raises it to its caller
            self._fail(loop, error)
            return
        self._housekeeping = None if seconds is None else loop.call_later(seconds, self._keep_house, loop)

    def _fail(self, loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
        self._error = error
        loop.stop()

    def _give(self, unit: Any) -> None:
        try:
            self._crew.give(unit)
        except RuntimeError as error:
            log.warning("refused a request because no thread is available to run it: %s", error)
            unit.refuse(Refusal(str(error), "resources"))

    def _is_full(self) -> bool:
        return self._crew.is_full or len(self._tasks) >= self._recipe.limit

    def _pause(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._paused:
            loop.remove_reader(self._intake.fileno())
        self._set_timer(loop, None)
        self._paused = True

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._paused = False
        loop.add_reader(self._intake.fileno(), self._take)
        self._set_timer(loop, self._intake.due())

    def _set_timer(self, loop: asyncio.AbstractEventLoop, seconds: float | None) -> None:
        """Check the intake after this many seconds even if its descriptor is not ready; None: rely on the descriptor."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else loop.call_later(seconds, self._take)

    # --- requests ----------------------------------------------------------------------------------------------------

    def dispatch(self, request: Request, client_address: Address) -> None:
        handler = self._work.handler
        if not is_async(handler):
            self._work.run(request, client_address)
        elif self._is_inside():
            self._start(self._work.run_async(request, client_address), f"{getattr(handler, '__qualname__', handler)} for {client_address}")
        else:  # a single request, outside `drive`
            with self._turning:
                self._open_loop().run_until_complete(self._work.run_async(request, client_address))

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        if self._watchdog is not None:
            coroutine = Steps(coroutine, self._watchdog.note)
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a request contains its own errors, so this one is meant for the process
            self._fail(task.get_loop(), error)
        self._make_use()

    def _freed(self) -> None:
        """In a worker thread, after a unit: let the loop use the free place."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._make_use, True)

    def _make_use(self, may_be_due: bool = False) -> None:
        """In the loop, after a unit or task has ended: resume taking units, or stop the loop if `wait` runs it and all have ended."""
        if self._waiting and self._is_idle():
            asyncio.get_running_loop().stop()
        elif self._intake is not None and self._paused and not self._is_full():
            self._go_on(asyncio.get_running_loop())
        elif self._intake is not None and may_be_due and not self._paused:
            self._set_timer(asyncio.get_running_loop(), self._intake.due())  # the unit may have parked its connection

    def _is_idle(self) -> bool:
        return not self._tasks and not self._crew.others()

    def _is_inside(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    # --- the end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Run the loop until no task and no unit is left. Inside the loop, only record the timeout and return True at once."""
        if self._is_inside():
            self._patience = timeout
            return True
        if not self._turning.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            loop = self._loop
            if loop is None or self._is_idle():
                return self._crew.wait(timeout)
            self._waiting = True
            timer = None if timeout is None else loop.call_later(timeout, loop.stop)
            try:
                loop.run_forever()
            finally:
                self._waiting = False
                if timer is not None:
                    timer.cancel()
            return self._is_idle()
        finally:
            self._turning.release()

    def force(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def close(self) -> None:
        """Cancel the remaining tasks and close the loop. Inside the loop, leave that to `drive`."""
        if self._is_inside():
            self._abandoned = True
            return
        self._crew.close()
        with self._turning:
            loop, self._loop = self._loop, None
            if loop is None:
                return
            if self._watchdog is not None:
                self._watchdog.close()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=AFTER_CANCEL))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def is_async(handler: Any) -> bool:
    return bool(getattr(handler, "is_async", False))


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        return import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]
    elsewhere = partial(_is_elsewhere, threading.get_ident())
    logger = logging.getLogger("asyncio")
    logger.addFilter(elsewhere)
    try:
        return asyncio.SelectorEventLoop()
    finally:
        logger.removeFilter(elsewhere)


def _is_elsewhere(thread: int, _record: logging.LogRecord) -> bool:
    """Return whether another thread logs the record: a filter that drops what asyncio logs about a new loop, at DEBUG.

    The lock of a log handler may belong to a thread that waits for an answer of this very server, as with `logging.handlers.HTTPHandler`.
    Source: Lib/asyncio/selector_events.py, BaseSelectorEventLoop.__init__.
    """
    return threading.get_ident() != thread


# --- the watchdog ----------------------------------------------------------------------------------------------------


class Steps(Coroutine[Any, Any, None]):
    """A coroutine that calls `note` each time it resumes."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], note: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._note = note

    def send(self, value: Any) -> Any:
        self._note()
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._note()
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # cr_frame and the like, for code that inspects a task


class Watchdog:
    """Asks the loop to respond while requests make progress, and warns if it does not. An idle server causes no wake-ups."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: float) -> None:
        self._loop = loop
        self._slow = slow
        self._steps = 0
        self._sleeps = False
        self._closed = False
        self._woken = threading.Semaphore(0)
        self._answer = threading.Semaphore(0)
        self._watched = 0  # identifier of the thread that runs the loop
        self._thread: threading.Thread | None = None

    def note(self) -> None:
        """In the loop: record that a request is about to resume."""
        self._steps += 1
        self._watched = threading.get_ident()
        if self._sleeps:
            self._sleeps = False
            self._woken.release()
        elif self._thread is None:
            self._thread = BackgroundThread(self._watch, "socketkit-watchdog")
            self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._woken.release()
        self._answer.release()  # the loop may no longer answer
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        seen = 0
        while not self._closed:
            if seen == self._steps:
                self._sleeps = True  # set before the last check: `note` counts first, then reads this
                if seen == self._steps:
                    self._woken.acquire()
                self._sleeps = False
                continue
            seen = self._steps
            if not self._ask():
                return
            self._woken.acquire(timeout=self._slow / 4)

    def _ask(self) -> bool:
        """Wait until the loop responds and warn if that takes too long; False if the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._answer.release)
        except RuntimeError:
            return False
        if not self._answer.acquire(timeout=self._slow):
            if self._loop.is_running():
                self._warn()
            self._answer.acquire()
        return True

    def _warn(self) -> None:
        task = asyncio.current_task(self._loop)
        frame = current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame, FRAMES)) if frame is not None else ""
        log.warning("%s has blocked the event loop for more than %g s; its stack is:\n%s", _who(task), self._slow, stack)


def _who(task: asyncio.Task[Any] | None) -> str:
    if task is None:
        return "a callback"
    coroutine = task.get_coro()
    return task.get_name() if isinstance(coroutine, Steps) else f"a task of {getattr(coroutine, '__qualname__', task.get_name())}"
