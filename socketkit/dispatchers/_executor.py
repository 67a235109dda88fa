"""The live part of the executor dispatcher.

With a handler that answers messages, only messages go to the executor, because another process can take nothing else. Connections stay
in this process, where worker threads read messages and write replies. With any other handler, whole units go there; only threads can run
those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import Executor as AnyExecutor
from functools import partial, reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

from socketkit._system.wakeup import Wakeup
from socketkit.dispatchers import _pools
from socketkit.dispatchers._workers import ConcurrencyLimit, WorkerThreads
from socketkit.errors import ConfigError
from socketkit.logs import Log
from socketkit.seams import Address, Refusal, RepliesToMessages, Request, Work
from socketkit.seams.messages import answer, answered_by, replies_to_messages

if TYPE_CHECKING:
    from socketkit.dispatchers.executor import Executor

log = Log("socketkit.dispatchers.executor")

LIMIT = 32
"""Most units at once in an executor that does not say how many workers it has."""


class ExecutorDriver:
    """The live part. One thread takes a unit whenever there is room for it and has it run elsewhere."""

    def __init__(self, recipe: Executor, work: Work) -> None:
        self.runs_in_place = True
        self.parking = recipe.parking
        self._work = work
        self._make = partial(_make, recipe.factory, find(recipe.factory))
        self._replacing = threading.Lock()
        self._closed = False
        self._waits = False  # the driver is waiting for room, so `_alarm` is set
        self._alarm: Wakeup
        self._executor = self._make()
        try:
            kind = type(self._executor)
            _pools.check(kind, work.handler, getattr(self._executor, "_mp_context", None))
            _pools.start(kind, self._submit, work.handler)
        except BaseException:
            self._executor.shutdown(wait=False)
            raise
        limit = recipe.limit or getattr(self._executor, "_max_workers", None) or LIMIT
        self._load = (
            WorkerThreads(limit, self._freed, "socketkit-executor")
            if replies_to_messages(work.handler)
            else ConcurrencyLimit(limit, self._freed)
        )

    # --- driving -----------------------------------------------------------------------------------------------------

    def drive(self, open_intake: Callable[[], Any]) -> None:
        alarm = Wakeup()  # woken by a stop, and when the end of a unit makes room
        with contextlib.closing(alarm), alarm.woken_by_signals(), open_intake() as intake:
            self._alarm = alarm
            intake.on_stop(alarm.wake)
            intake.watch(alarm.fileno(), alarm.clear)  # so that a signal also ends a wait at the intake
            while not intake.stopped:
                self._waits = True  # set before the check: a unit makes room first, then reads this
                if self._load.is_full:
                    alarm.wait(intake.housekeep())
                    continue
                self._waits = False
                unit = intake.take(intake.housekeep())
                if unit is not None:
                    self._give(unit)

    def _freed(self) -> None:
        if self._waits:
            self._alarm.wake()

    def _give(self, unit: Any) -> None:
        try:
            if isinstance(self._load, WorkerThreads):
                self._load.give(partial(self._run_with_messages, unit))
            else:
                self._give_whole(unit)
        except Exception as error:  # noqa: BLE001 - a foreign executor may raise anything; the request was not run
            _refuse(unit, error)

    # --- units in the executor ---------------------------------------------------------------------------------------

    def _give_whole(self, unit: Any) -> None:
        offer = [unit]
        self._load.begin()
        try:
            future = self._submit(self._run, offer)
        except BaseException as error:
            if _taken(offer) is not None:  # a ThreadPoolExecutor that cannot start a thread raises but keeps the unit, and another took it
                self._load.end()
                _refuse(unit, error)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            return
        future.add_done_callback(partial(self._over, offer))

    def _run(self, offer: list[Any]) -> None:
        unit = _taken(offer)
        if unit is not None:
            self._load.run(unit)

    def _over(self, offer: list[Any], future: Future[None]) -> None:
        """Clean up after a unit. Units raise nothing, so an error means that the executor did not run it."""
        error = RuntimeError("the executor cancelled the request") if future.cancelled() else future.exception()
        if error is not None and (unit := _taken(offer)) is not None:
            self._load.end()
            _refuse(unit, error)

    # --- messages in the executor ------------------------------------------------------------------------------------

    def _run_with_messages(self, unit: Callable[[], object]) -> None:
        with answered_by(self._answer):
            unit()

    def _answer(self, handler: type[RepliesToMessages], message: bytes, client_address: Address, _request: Request) -> bytes | None:
        return self._submit(answer, handler, message, client_address).result()  # type: ignore[no-any-return]

    # --- the executor ------------------------------------------------------------------------------------------------

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Submit; if the executor is broken, submit to a new one. Raises: whatever the executor or the factory raises."""
        executor = self._executor
        with _leaving(self._work.forget):
            try:
                return executor.submit(function, *arguments)
            except BrokenExecutor:
                self._replace(executor)
                return self._executor.submit(function, *arguments)

    def _replace(self, broken: AnyExecutor) -> None:
        """Make a new executor unless another thread already has. Raises: what the factory raises."""
        with self._replacing:
            if self._executor is broken and not self._closed:
                log.warning("%s is broken; a new one replaces it", type(broken).__name__)
                self._executor = self._make()
                broken.shutdown(wait=False)

    # --- the end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        return self._load.wait(timeout)

    def force(self) -> None:
        """Kill the executor's processes, if it has any; requests that run in them fail."""
        self._closed = True
        for process in list((getattr(self._executor, "_processes", None) or {}).values()):
            process.kill()

    def close(self) -> None:
        with self._replacing:
            self._closed = True
        if isinstance(self._load, WorkerThreads):
            self._load.close()
        self._executor.shutdown(wait=self._load.is_idle, cancel_futures=True)


class DaemonThreads(AnyExecutor):
    """Runs calls in at most `LIMIT` daemon threads. The interpreter exits while they run, as it does not with `ThreadPoolExecutor`."""

    def __init__(self) -> None:
        self._max_workers = LIMIT
        self._workers = WorkerThreads(LIMIT, lambda: None, "socketkit-executor")
        self._submitting = threading.Lock()
        self._is_shut_down = False

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`. Raises: RuntimeError after `shutdown`, or if not even the first thread can be started."""
        future = Future[Any]()
        with self._submitting:
            if self._is_shut_down:
                raise RuntimeError("the threads were told to end")
            self._workers.give(partial(_fulfil, future, partial(function, *arguments, **named)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the base's signature
        """As `concurrent.futures.Executor.shutdown`, but calls that are waiting for a thread are always run."""
        with self._submitting:  # otherwise a thread that is just being started would not be told to end
            self._is_shut_down = True
            self._workers.close()
        if wait:
            self._workers.wait(None)


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
            future.set_exception(error)


def _taken(offer: list[Any]) -> Any:
    """Return an offered unit to the first caller and None to all others: it is run by the executor or taken back, never both."""
    try:
        return offer.pop()
    except IndexError:
        return None


def _refuse(unit: Any, error: BaseException) -> None:
    log.warning("refused a request because the executor cannot run it: %s", error)
    if unit.begun:
        unit.abandon()
    else:
        unit.refuse(Refusal(str(error), "resources"))


# --- what is given ---------------------------------------------------------------------------------------------------


def find(factory: Any) -> Callable[[], AnyExecutor]:
    """Return the factory itself, or what its name stands for. Raises: ConfigError."""
    if not isinstance(factory, str):
        return factory  # type: ignore[no-any-return] # the recipe has checked that it is callable
    module, _, name = factory.partition(":")
    try:
        return reduce(getattr, name.split("."), import_module(module))  # type: ignore[return-value] # if not, calling it fails
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise ConfigError.of(f"executor {factory!r} cannot be imported ({_describe(error)})") from error


def _make(factory: Any, found: Callable[[], AnyExecutor]) -> AnyExecutor:
    """Return a new executor. factory: how the recipe names it. Raises: ConfigError."""
    try:
        executor = found()
    except Exception as error:
        raise ConfigError.of(f"executor {factory!r} cannot be created ({_describe(error)})") from error
    if not isinstance(executor, AnyExecutor):
        kind = type(executor).__name__
        raise ConfigError.of(f"executor {factory!r} returned a {kind}; it must return a concurrent.futures.Executor")
    _pools.prepare(executor)
    return executor


def _describe(error: BaseException) -> str:
    is_too_old = sys.version_info < (3, 14) and "InterpreterPoolExecutor" in str(error)
    return f"{type(error).__name__}: {error}" + ("; it needs Python 3.14" if is_too_old else "")


# --- processes forked by the executor --------------------------------------------------------------------------------

_forgets: dict[int, Callable[[], None]] = {}
"""By thread identifier: how a child closes its parent's sockets, while that thread is inside an executor that may fork."""


@contextlib.contextmanager
def _leaving(forget: Callable[[], None]) -> Iterator[None]:
    """Have processes forked inside this block close the listeners. Otherwise clients could connect after the parent closes them."""
    thread = threading.get_ident()
    _forgets[thread] = forget
    try:
        yield
    finally:
        _forgets.pop(thread, None)


def _after_fork() -> None:
    forget = _forgets.get(threading.get_ident())
    _forgets.clear()
    if forget is not None:
        with contextlib.suppress(ValueError):  # not possible in this thread, so the parent has not set one
            signal.set_wakeup_fd(-1)
        forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
