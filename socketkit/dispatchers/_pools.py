"""The standard library's executors that run calls in other processes or interpreters.

A handler can run there only if they can import it; and the server alone decides when they end.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from socketkit._system import signals
from socketkit._system.threads import BackgroundThread
from socketkit.errors import IncompatibleError
from socketkit.seams.messages import replies_to_messages


def is_processes(kind: type) -> bool:
    """Return whether executors of this class have processes."""
    return _is(kind, "process", "ProcessPoolExecutor")


def is_interpreters(kind: type) -> bool:
    """Return whether executors of this class have interpreters of their own. Source: PEP 734; Python 3.14 has them."""
    return _is(kind, "interpreter", "InterpreterPoolExecutor")


def _is(kind: type, module: str, name: str) -> bool:
    found = sys.modules.get(f"concurrent.futures.{module}")  # do not import it just to check: it imports a lot
    return found is not None and issubclass(kind, getattr(found, name))


def check(kind: type, handler: Any, context: Any = None) -> None:
    """Check that a handler can run in executors of this class. context: of `multiprocessing`; None: the default. Raises: IncompatibleError."""
    if not (is_processes(kind) or is_interpreters(kind)):
        return
    one, several = ("a process", "processes") if is_processes(kind) else ("an interpreter", "interpreters")
    name = getattr(handler, "__qualname__", repr(handler))
    if not replies_to_messages(handler):
        raise IncompatibleError("Executor", f"has {several}, which cannot run {name}", "derive it from MessageHandler, or use threads")
    try:
        pickle.dumps(handler)
    except Exception as error:
        raise IncompatibleError("Executor", f"cannot send {name} to {one} ({error})", "define it at the top of a module") from error
    method = _start_method(context) if is_processes(kind) else ""
    if handler.__module__ == "__main__" and method != "fork":
        how = f"starts processes by {method}" if method else f"has {several}"
        reason = f"{how}, which cannot import {name} from the program's main file"
        raise IncompatibleError("Executor", reason, "define it in a module that can be imported")


def _start_method(context: Any) -> str:
    method: str | None = (context or multiprocessing).get_start_method(allow_none=True)  # without choosing a method for the program
    return method or multiprocessing.get_all_start_methods()[0]


def prepare(executor: Any) -> None:
    """Prepare a new executor, if it has processes or interpreters that do not run yet."""
    if is_processes(type(executor)):
        _shield(executor)
    elif is_interpreters(type(executor)):
        _share_path(executor)


def start(kind: type, submit: Callable[..., Future[Any]], handler: Any) -> None:
    """Start what an executor of this class runs calls in, before the server has connections. Raises: IncompatibleError.

    Processes are forked while there are no connections to copy. The first interpreter imports the handler, which fails if that needs an
    extension module that supports only one interpreter. Source: PEP 489.
    """
    if is_processes(kind):
        submit(int)
    elif is_interpreters(kind):
        try:
            submit(exec, f"__import__({handler.__module__!r})").result()
        except Exception as error:
            reason = f"has interpreters, which cannot run {handler.__qualname__} ({type(error).__name__}: {error})"
            raise IncompatibleError("Executor", reason, "use processes") from error


# --- processes ---------------------------------------------------------------------------------------------------------


class _Shielded(dict[int, Any]):
    """The processes of a pool, by pid. They ignore SIGTERM, so what the pool means to terminate it has to kill."""

    def __setitem__(self, pid: int, process: Any) -> None:
        process.terminate = process.kill
        super().__setitem__(pid, process)


def _shield(pool: Any) -> None:
    """Have the server alone decide when the processes of a pool end, unless they run already. The pool may have its own initializer."""
    if not pool._processes:  # noqa: SLF001 - there is no public way, and `ProcessPoolExecutor` has had both names since Python 3.7
        pool._processes = _Shielded()  # noqa: SLF001 - as above
        pool._initializer = partial(_live_as_long_as_the_server, pool._initializer)  # noqa: SLF001 - as above
        if pool._mp_context.get_start_method() == "forkserver":  # noqa: SLF001 - as above
            _shield_fork_server()
        else:
            pool._spawn_process = partial(_spawn, pool._spawn_process)  # noqa: SLF001 - as above


_FOR_THE_SERVER = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal or a service manager sends to all processes of a server. The server drains."""


def _spawn(spawn: Callable[[], object]) -> None:
    """Start a process. It inherits that signals are held back, until it ignores them: starting takes time."""
    if not hasattr(signal, "pthread_sigmask"):
        spawn()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_SERVER)
    try:
        spawn()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_as_long_as_the_server(initializer: Callable[..., object] | None, *arguments: Any) -> None:
    """In a new process: leave it to the server when to end. Then call the initializer that the executor had."""
    for number in _FOR_THE_SERVER:
        signals.ignore(number)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_SERVER)
    server = multiprocessing.parent_process()
    if server is not None:
        BackgroundThread(partial(_end_with, server), "socketkit-executor-watch").start()
    if initializer is not None:
        initializer(*arguments)


def _end_with(server: Any) -> None:
    server.join()
    os._exit(1)


def _shield_fork_server() -> None:
    """Have the fork server, if it does not run yet, import what keeps SIGTERM from ending it: all its processes would end with it.

    Source: CPython's multiprocessing/forkserver.py, `ForkServer` and `main`.
    """
    from multiprocessing import forkserver  # noqa: PLC0415 - only systems with fork have it

    server: Any = forkserver._forkserver  # noqa: SLF001 - the public function replaces what the program has it import
    module = "socketkit.dispatchers._fork_server"
    if module not in server._preload_modules:  # noqa: SLF001 - as above
        server._preload_modules = [*server._preload_modules, module]  # noqa: SLF001 - as above


# --- interpreters ------------------------------------------------------------------------------------------------------


def _share_path(pool: Any) -> None:
    """Have the interpreters of a pool import from the folders that this one imports from, as processes do.

    Source: CPython's concurrent/futures/thread.py, `ThreadPoolExecutor`, and interpreter.py, `WorkerContext`.
    """
    create = pool._create_worker_context  # noqa: SLF001 - there is no public way; even the pool's initializer has to be imported

    def create_with_path() -> Any:
        context = create()
        run = context.run

        def run_first(call: Any) -> Any:
            context.run = run
            context.interp.exec(f"import sys; sys.path[:] = {sys.path!r}")
            return run(call)

        context.run = run_first
        return context

    pool._create_worker_context = create_with_path  # noqa: SLF001 - as above
