"""The live part: an event loop of trio in a thread of its own, which takes requests and awaits their handlers."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from socketkit.logs import Log
from socketkit.seams import Wakeup

if TYPE_CHECKING:
    from socketkit.seams import Address, Drive, EventLoop, Forces, Intake, OpenIntake, Request, Work

    _Ended: TypeAlias = Callable[[BaseException | None], object]

log = Log(__name__)

UNITS_PER_TURN = 64
"""How many requests are taken before their tasks get to run."""

UNTIL_END = 5.0
"""Seconds until a closed event loop without tasks counts as stuck, for example in a system task of the program."""

LAST_WORD = 0.5
"""Seconds that cancelled tasks get for their clean-up when the event loop is closed."""


class Tasks:
    """Runs each request as a task, at most `limit` at once. threads: the most that layers may block.

    trio cannot pause an event loop, and tasks go on between `drive` and `close`. So the loop has a thread of its own, and `drive` only waits
    for the stop in the serving thread. That is also where Ctrl-C raises KeyboardInterrupt, which trio therefore never sees.
    """

    def __init__(self, work: Work, limit: int, threads: int) -> None:
        self._work = work
        self._limit = limit
        self._waits = Waits(trio.CapacityLimiter(threads))
        self._loop: LoopThread | None = None
        self._opening = threading.Lock()
        self._taking: Taking | None = None  # while driving

    def drive(self, open_intake: OpenIntake) -> None:
        """Have the event loop take units; do the server's periodic work in this thread, and wait for the stop."""
        loop = self._open_loop()
        with contextlib.closing(Wakeup()) as alarm, alarm.woken_by_signals(), open_intake() as intake:
            intake.on_stop(alarm.wake)
            taking = self._taking = Taking(intake, lambda: len(loop.tasks) >= self._limit)
            loop.call_soon(partial(loop.begin, taking.go_on))
            try:
                while not intake.stopped:
                    alarm.wait(intake.housekeep())
            except BaseException:
                intake.stop()
                raise
            finally:
                loop.call_soon(taking.look)
                taking.ended.wait()
                self._taking = None
        if taking.error is not None:
            raise taking.error

    def dispatch(self, request: Request, client_address: Address) -> None:
        """Begin the request's task. Outside the event loop, wait for its end: see `socketkit.seams.Drive`."""
        loop = self._open_loop()
        serve = partial(self._work.run_async, request, client_address, self._waits)
        if loop.is_inside:
            loop.start(serve, self._ended)
        else:
            loop.run(serve)

    def wait(self, timeout: float | None) -> bool:
        """Wait for all tasks to end. A handler that calls this does not wait, because nothing could go on meanwhile."""
        return self._loop is None or self._loop.wait(timeout)

    def force(self) -> None:
        """Cancel all tasks."""
        if self._loop is not None:
            self._loop.cancel()

    def close(self) -> None:
        """Cancel what is left, and end the event loop. A handler that calls this lets the loop end after the last task."""
        if self._loop is not None:
            self._loop.close()

    # inside

    def _open_loop(self) -> LoopThread:
        loop = self._loop
        if loop is None or loop.is_closed:
            with self._opening:
                if self._loop is loop:
                    self._loop = LoopThread()
                loop = self._loop
        assert loop is not None  # noqa: S101 - for the type checker: it only ever gets a new one
        return loop

    def _ended(self, error: BaseException | None) -> None:
        """In the loop, after a task: take the next request. A request contains its own errors, so `error` is meant for the process."""
        if self._taking is None:
            return
        if error is not None:
            self._taking.fail(error)
        self._taking.look()


class Taking:
    """Takes units from an intake, in a task of the event loop, for one call of `drive`. All methods belong to the loop.

    Attributes:
        ended: set once the intake is not used any more.
        error: what ended it early; `drive` raises it.
    """

    def __init__(self, intake: Intake, is_full: Callable[[], bool]) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._intake = intake
        self._is_full = is_full
        self._looks = trio.Event()  # while it waits for room

    async def go_on(self) -> None:
        """Take units until the intake is stopped."""
        try:
            while not self._intake.stopped:
                if self._is_full():
                    self._looks = trio.Event()
                    await self._looks.wait()
                else:
                    self._take()
                    await self._until_due()
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - `drive` raises it to its caller
            self.fail(error)
        finally:
            self.ended.set()

    def look(self) -> None:
        """Have it look whether there is room, or the intake is stopped."""
        self._looks.set()

    def fail(self, error: BaseException) -> None:
        """End it, and `drive`, because of an error."""
        self.error = error
        self._intake.stop()

    def _take(self) -> None:
        for _ in range(UNITS_PER_TURN):
            unit = None if self._is_full() else self._intake.take(0)
            if unit is None:
                return
            copy_context().run(unit)  # so that no request sees another's context variables

    async def _until_due(self) -> None:
        if self._intake.stopped or self._is_full():  # a stop may have been seen, and its wake-up consumed, while taking
            await trio.lowlevel.checkpoint()
            return
        seconds = self._intake.due()
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await trio.lowlevel.wait_readable(self._intake.fileno())


class LoopThread:
    """An event loop of trio in a thread of its own. It ends after `close`, once no task is left.

    Attributes:
        tasks: the cancel scope of each task that `start` has begun and that has not ended.
        is_closed: whether `close` has been called, so that a new loop is needed.
    """

    _token: trio.lowlevel.TrioToken
    _nursery: trio.Nursery
    _closing: trio.Event

    def __init__(self) -> None:
        self.tasks: set[trio.CancelScope] = set()
        self.is_closed = False
        self._idle = threading.Event()
        self._idle.set()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="socketkit-trio", daemon=True)
        self._thread.start()
        opened.result()

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is that of the loop."""
        return threading.current_thread() is self._thread

    # in the loop

    def begin(self, function: Callable[[], Awaitable[object]]) -> None:
        """Begin a task that ends by itself."""
        self._nursery.start_soon(function)

    def start(self, function: Callable[[], Awaitable[object]], ended: _Ended) -> trio.CancelScope:
        """Begin a task; return what cancels it. ended: called in the loop when it has ended, with what it has raised."""
        scope = trio.CancelScope()
        self.tasks.add(scope)
        self._idle.clear()
        self._nursery.start_soon(self._await, scope, function, ended)
        return scope

    async def _await(self, scope: trio.CancelScope, function: Callable[[], Awaitable[object]], ended: _Ended) -> None:
        error: BaseException | None = None
        try:
            with scope:
                await function()
        except trio.Cancelled:
            raise
        except BaseException as raised:  # noqa: BLE001 - judged by the one who has begun it
            error = raised
        finally:
            self.tasks.discard(scope)
            if not self.tasks:
                self._idle.set()
            ended(error)

    # from any thread

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call the function in the loop; do nothing if the loop has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def run(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a task from another thread and wait for its end. An exception in that thread, such as Ctrl-C, cancels it.

        Raises: what the task raises.
        """
        ended: Future[None] = Future()
        scopes: list[trio.CancelScope] = []

        def finish(error: BaseException | None) -> None:
            ended.set_result(None) if error is None else ended.set_exception(error)

        self.call_soon(lambda: scopes.append(self.start(function, finish)))
        try:
            ended.result()
        except BaseException:
            self.call_soon(lambda: [scope.cancel() for scope in scopes])
            ended.exception()  # waits
            raise

    def wait(self, timeout: float | None) -> bool:
        """Return whether no task is left, at the latest after `timeout` seconds; in the loop at once, where the caller's does not count."""
        if self.is_inside:
            return len(self.tasks) <= 1
        return self._idle.wait(timeout)

    def cancel(self) -> None:
        """Cancel all tasks."""
        self.call_soon(lambda: [scope.cancel() for scope in list(self.tasks)])

    def close(self) -> None:
        """End the loop once no task is left; outside the loop, cancel what is left and wait a while for it. May be called twice."""
        self.is_closed = True
        self.call_soon(self._closing.set)
        if self.is_inside:
            return
        if not self._idle.is_set():
            self.cancel()
            self._idle.wait(LAST_WORD)
        self._thread.join(UNTIL_END if self._idle.is_set() else 0)

    # inside

    def _run(self, opened: Future[None]) -> None:
        try:
            trio.run(self._main, opened)
        except BaseException as error:
            if opened.done():
                log.exception("the event loop has failed")
            else:
                opened.set_exception(error)
        finally:
            self.is_closed = True

    async def _main(self, opened: Future[None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._closing = trio.Event()
        async with trio.open_nursery() as self._nursery:
            opened.set_result(None)
            await self._closing.wait()


@attrs.frozen
class Waits:
    """How the server waits in an event loop of trio: see `socketkit.seams.EventLoop`."""

    _threads: trio.CapacityLimiter

    async def until_ready(self, request: Request, *, sends: bool) -> None:
        """Wait until the connection can receive, or send."""
        await (trio.lowlevel.wait_writable if sends else trio.lowlevel.wait_readable)(request.fileno())

    async def run_in_thread(self, function: Callable[[], Any]) -> Any:
        """Call the function in a thread of its own. trio's own threads would stay for ten seconds, also after the server."""
        token, result, ended = trio.lowlevel.current_trio_token(), Future[Any](), trio.Event()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised below
                result.set_exception(error)
            token.run_sync_soon(ended.set)

        async with self._threads:
            threading.Thread(target=call, name="socketkit-trio-layer", daemon=True).start()
            with trio.CancelScope(shield=True):
                await ended.wait()
        return result.result()

    def is_cancellation(self, error: BaseException) -> bool:
        """Return whether it is trio's Cancelled, or a group of nothing else: nobody can raise that without a cancelled scope."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.is_cancellation, error.exceptions))
        return isinstance(error, trio.Cancelled)


if TYPE_CHECKING:

    def _conforms(live: Tasks, waits: Waits) -> tuple[Drive, Forces, EventLoop]:
        return live, live, waits
