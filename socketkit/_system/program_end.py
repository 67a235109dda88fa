"""The end of a program that cannot end everything in it: code that other interpreters run.

At the end of a program, Python frees its other interpreters without waiting for their daemon threads. A thread that runs on uses freed
memory then, which may crash the process or keep it from ending. Source: CPython's Python/pylifecycle.c, `Py_EndInterpreter`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from socketkit._system import logs


def leave_behind(is_running: Callable[[], bool]) -> None:
    """Have this program end before Python frees anything, if `is_running()` is still true at the end. Its exit functions do run."""
    status = _ExitStatus()

    def at_end_of_main_thread() -> None:
        status.unwatch()
        atexit.register(at_exit)  # after all others, so called before them

    def at_exit() -> None:
        if is_running():
            atexit.unregister(at_exit)
            atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does
            status.leave()

    with contextlib.suppress(RuntimeError):  # the program ends already
        threading._register_atexit(at_end_of_main_thread)  # type: ignore[attr-defined] # noqa: SLF001 - there is no public way
        status.watch()


class _ExitStatus:
    """How the program would end. Exit functions cannot ask, so this takes note of the exception that ends the main thread, if one does.

    Source: CPython's Python/pythonrun.c, `_Py_HandleSystemExitAndKeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._tool: int | None = None

    def watch(self) -> None:
        """Take note from now on, if one of `sys.monitoring`'s numbers for tools is free. Otherwise the program counts as successful."""
        self._tool = next((each for each in range(6) if sys.monitoring.get_tool(each) is None), None)  # type: ignore[attr-defined]
        if self._tool is not None:
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined] # since Python 3.12
            monitoring.use_tool_id(self._tool, __name__)
            monitoring.register_callback(self._tool, monitoring.events.PY_UNWIND, self._unwound)
            monitoring.set_events(self._tool, monitoring.events.PY_UNWIND)

    def unwatch(self) -> None:
        if self._tool is not None:
            sys.monitoring.free_tool_id(self._tool)  # type: ignore[attr-defined]
            self._tool = None

    def _unwound(self, _code: object, _offset: int, error: BaseException) -> None:
        """An exception leaves a frame."""
        if sys._getframe(1).f_back is None and threading.get_ident() == threading.main_thread().ident:  # noqa: SLF001 - the way to a frame
            self._error = error

    def leave(self) -> None:
        """End this process as Python would. Python has written what it says about the exception."""
        if isinstance(self._error, KeyboardInterrupt):
            logs.finish_streams()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        logs.leave(self._code())

    def _code(self) -> int:
        if not isinstance(self._error, SystemExit):
            return int(self._error is not None)
        code = self._error.code
        if isinstance(code, int):
            return code & 0xFF
        return int(code is not None)
