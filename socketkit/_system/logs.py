"""The library's logging: a serving thread neither waits for a log handler nor fails because of one.

Serving code logs through a `Log`. The calling thread turns each line into a complete `logging.LogRecord` of bounded length. Another
thread, the *emitter*, which runs only while records wait, hands it to the program's log handlers. Records beyond `MOST_WAITING` are
dropped and counted. Of similar lines, the first few are logged and the rest counted.

An interpreter without daemon threads has no emitter: the calling thread hands the record over, and waits as in a call of `logging`.

Nothing here imports `logging`. A program that has not imported it either has configured nothing, so a line goes where `logging` would
write it: to standard error, from WARNING on. That needs no free descriptor, unlike an import. Source: Lib/logging/__init__.py, `lastResort`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import copy_context
from functools import partial

from socketkit._system.repeats import FEW, Repeats, Window
from socketkit._system.threads import ALLOWS_DAEMONS, BackgroundThread

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    import logging
    from typing import Any, NoReturn

MOST_WAITING = 256
"""Most records that may wait for the emitter."""

LONGEST = 16_384
"""Most characters of a message, and of a traceback; longer ones lose their middle."""

PATIENCE = 1.0
"""Seconds that the end of a run, or of the program, waits for a single record to be written, and for all of them."""

SHORT_PATIENCE = 0.25
"""Seconds that a serving thread waits for a standard stream, or before a fork."""


DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
"""The levels of `logging`."""


class Log:
    """A logger for serving code; `name` is that of the underlying `logging.Logger`, whose levels and handlers apply.

    The methods are those of a `logging.Logger`, but they never raise, and wait for a handler only in an interpreter that allows no daemon
    threads. They also take:

    about: the subject of the line; similar lines are counted per subject. Never a value that a peer chooses, or the peer could
        fill the log.
    few: how many similar lines are logged within `WINDOW` seconds.
    error: the exception to show. Lines whose exceptions were raised in different places are counted separately.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        _find(name)  # so that the logger exists before the program configures those that do, if it has imported `logging`

    def debug(self, message: str, *args: object, **how: Any) -> None:
        """Log at DEBUG."""
        if _is_enabled(self._name, DEBUG):
            self._say(DEBUG, message, args, **how)

    def info(self, message: str, *args: object, **how: Any) -> None:
        """Log at INFO."""
        if _is_enabled(self._name, INFO):
            self._say(INFO, message, args, **how)

    def announce(self, message: str, *args: object) -> None:
        """Log at INFO, and show it to a user at a terminal whose program logs nothing there."""
        self.info(message, *args)
        if _is_terminal(sys.stderr) and not _reaches_terminal(_find(self._name)):
            _put_plain(_format(message, args))

    def warning(self, message: str, *args: object, **how: Any) -> None:
        """Log at WARNING."""
        if _is_enabled(self._name, WARNING):
            self._say(WARNING, message, args, **how)

    def error(self, message: str, *args: object, **how: Any) -> None:
        """Log at ERROR."""
        if _is_enabled(self._name, ERROR):
            self._say(ERROR, message, args, **how)

    def exception(self, message: str, *args: object, **how: Any) -> None:
        """Log at ERROR, with the exception that is being handled."""
        if _is_enabled(self._name, ERROR):
            self._say(ERROR, message, args, error=sys.exception(), **how)

    def _say(  # noqa: PLR0913 - all parts of a line
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        *,
        about: Hashable = None,
        few: int = FEW,
        error: BaseException | None = None,
    ) -> None:
        logger = _find(self._name)
        try:
            window = _repeats.admit((self._name, level, message, about, _origin(error)), few)
            _sum_up(_repeats.overdue())
            if window is None:
                return
            text = _format(message, args)
            window.like = window.like or (logger, level, text)
            if window.before:
                text += f" ({window.before} more like this were suppressed)"
                window.before = 0
            if logger is None:
                _put_plain(text, error)
                return
            record = _record(logger, level, text, error)
            _emitter.put(partial(copy_context().run, logger.handle, record))
        except Exception:  # noqa: BLE001 - the program's record factory may raise anything, and memory may be short
            _emitter.lose()


_loggers: dict[str, logging.Logger] = {}


def _find(name: str) -> logging.Logger | None:
    """Return the logger of that name; None as long as the program has not imported `logging`."""
    logger = _loggers.get(name)
    if logger is None and "logging" in sys.modules:
        import logging  # noqa: PLC0415 - a name for what is imported, or about to be by another thread, which this waits for

        if not _loggers and _comes_before_logging:
            atexit.register(_at_exit)  # once more, to be called before the function that `logging` has registered meanwhile
        with contextlib.suppress(AttributeError):  # a signal handler has interrupted the import
            logger = _loggers[name] = logging.getLogger(name)
    return logger


def _is_enabled(name: str, level: int) -> bool:
    logger = _find(name)
    return level >= WARNING if logger is None else logger.isEnabledFor(level)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except Exception:  # noqa: BLE001 - it is None, closed, or a program's own
        return False


def _reaches_terminal(logger: logging.Logger | None) -> bool:
    """Return whether an INFO line of this logger is shown at a terminal."""
    above = logger if logger is not None and logger.isEnabledFor(INFO) else None
    while above is not None:
        if any(each.level <= INFO and _is_terminal(getattr(each, "stream", None)) for each in above.handlers):
            return True
        above = above.parent if above.propagate else None
    return False


def write(stream: Any, text: str) -> None:
    """Write to a standard stream; return when that is done, has failed, or takes longer than `SHORT_PATIENCE`."""
    if stream is None:  # as under pythonw, or after its descriptor was closed
        return
    if _may_block(stream):
        _emitter.put(partial(_write, stream, text))
        _emitter.flush(SHORT_PATIENCE)
    else:
        with contextlib.suppress(Exception):  # closed, full, or a program's own stream that raises
            _write(stream, text)


def flush(seconds: float = PATIENCE) -> bool:
    """Wait until all records are written, for `seconds` at most; return whether they are.

    Does not wait for a record that has already kept the handlers busy for longer than `PATIENCE`.
    """
    return _emitter.flush(seconds)


def finish() -> None:
    """At the end of a run: log how many lines were suppressed, reset the counts, and wait as `flush` does."""
    _sum_up(_repeats.overdue(everything=True))
    if not _emitter.flush(PATIENCE) and not is_emitter(threading.current_thread()):
        _step_aside(_stuck()[1])


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, broken or None
            stream.flush()


def leave(status: int) -> NoReturn:
    """End this process by `os._exit`, after `finish_streams`."""
    finish_streams()
    os._exit(status)


def finish_streams() -> None:
    """Before this process ends: return once its log and standard streams are written, or have taken too long."""
    finish()
    if _emitter.forked_amid_writing or not flush(0):
        for stream in (sys.stdout, sys.stderr):
            write(stream, "")
    else:
        flush_streams()


def is_emitter(thread: threading.Thread) -> bool:
    """Return whether the thread is the one that hands records to handlers."""
    return thread is _emitter.thread


# --- suppressed lines --------------------------------------------------------------------------------------------------


def _sum_up(windows: list[Window]) -> None:
    for window in windows:
        if window.like is not None:
            logger, level, text = window.like
            text = f"{window.missed} more like this were suppressed: {text}"
            if logger is None:
                _put_plain(text)
            else:
                _emitter.put(partial(logger.handle, logger.makeRecord(logger.name, level, __file__, 0, text, (), None)))


# --- the emitter -------------------------------------------------------------------------------------------------------


class Emitter:
    """Calls jobs one by one in a thread that ends when none are left. Thread-safe, also from its own thread.

    Where daemon threads are not allowed, whoever puts a job calls it, or leaves it to the thread that is calling one already. Python waits
    for a thread that is no daemon when it ends the interpreter. A blocked log handler in one would thus block whoever shuts down the pool
    of interpreters, after all requests have ended in time. It blocks the request that logs instead, so the server's deadlines apply to it.
    """

    def __init__(self, *, forked_amid_writing: bool = False) -> None:
        self.forked_amid_writing = forked_amid_writing  # if so, a stream may hold data that the parent could not write
        self.thread: threading.Thread | None = None  # the one that calls jobs now
        self._lock = threading.RLock()  # a signal handler may interrupt the thread that holds it
        self._over = threading.Condition(self._lock)  # notified when that thread has called all of them
        self._waiting: deque[Callable[[], object]] = deque()
        self.job: Callable[[], object] | None = None  # the current one
        self._began = 0.0  # when the current job began
        self._lost = 0

    def put(self, job: Callable[[], object]) -> None:
        """Queue the job; drop and count it if too many already wait."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._lost += 1
                return
            self._waiting.append(job)
            if ALLOWS_DAEMONS:
                self._start()
        if not ALLOWS_DAEMONS:
            self.emit_here()

    def lose(self) -> None:
        with self._lock:
            self._lost += 1

    def flush(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                if self._waiting and ALLOWS_DAEMONS:
                    self._start()
                thread = self.thread
                if thread is None:
                    return not self._waiting
                left = min(end, self._began + PATIENCE) - time.monotonic()
            if left <= 0 or thread is threading.current_thread():  # a log handler may stop a server
                return False
            if isinstance(thread, BackgroundThread):
                with contextlib.suppress(RuntimeError):  # a signal handler has interrupted its start
                    thread.join(left)
            else:  # a thread of the program, which goes on after its job
                with self._lock:
                    if self.thread is thread:
                        self._over.wait(left)

    def emit_here(self) -> None:
        """Run the waiting jobs in the calling thread, unless another thread runs them, or a job of this very thread has led here."""
        with self._lock:
            if self.thread is not None:
                return
            self.thread = threading.current_thread()
            self._began = time.monotonic()
        try:
            self._run()
        finally:
            self._rest()

    def _start(self) -> None:
        if self.thread is not None:
            return
        self.thread = BackgroundThread(self._run, "socketkit-logs")
        self._began = time.monotonic()
        try:
            self.thread.start()
        except RuntimeError:  # the system has no thread available: the next record tries again
            self.thread = None
        except BaseException:  # Ctrl-C: if the thread did start, there are two for a while, which is harmless
            self.thread = None
            raise

    def _run(self) -> None:
        told = False
        while True:
            with self._lock:
                self.job = None  # releases what the job keeps alive
                if self._waiting:
                    self.job = self._waiting.popleft()
                elif self._lost and not told:
                    self.job, told = self._tell_of_lost, True
                else:
                    self._rest()
                    return
                self._began = time.monotonic()
            self._call(self.job)

    def _rest(self) -> None:
        with self._lock:
            if self.thread is threading.current_thread():
                self.thread = None
                self._over.notify_all()

    def _call(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException:  # noqa: BLE001 - an error of a handler loses this record only
            if job != self._tell_of_lost:
                self.lose()

    def _tell_of_lost(self) -> None:
        lost = self._lost
        text, own = f"{lost} log records were lost, because log handlers failed or were too slow", _find("socketkit.logs")
        if own is None:
            _write_plain(sys.stderr, text + "\n")
        elif own.isEnabledFor(WARNING):
            own.handle(own.makeRecord(own.name, WARNING, __file__, 0, text, (), None))
        with self._lock:
            self._lost -= lost


# --- records -----------------------------------------------------------------------------------------------------------


def _record(logger: logging.Logger, level: int, text: str, error: BaseException | None) -> logging.LogRecord:
    """Return a record of the current time, thread and place that keeps no objects alive: its contents are already text."""
    file, line, function, _ = logger.findCaller(stacklevel=4)  # above `_say` and the method of `Log`
    record = logger.makeRecord(logger.name, level, file, line, _shorten(text), (), None, function)
    if error is not None:
        record.exc_text = _shorten(_guarded(lambda: format_exception(error)))
    return record


def _put_plain(text: str, error: BaseException | None = None) -> None:
    """Write a line as `logging` does in a program that has not configured it."""
    if error is not None:
        text = "\n".join((text, _shorten(_guarded(lambda: format_exception(error)))))
    _emitter.put(partial(_write_plain, sys.stderr, text + "\n"))


def _write_plain(stream: Any, text: str) -> None:
    with contextlib.suppress(Exception):  # there is none, or it is closed
        _write(stream, text)


def format_exception(error: BaseException) -> str:
    """Return the traceback as text: without lines of source and without the causes, if Python cannot format it.

    That needs modules that are perhaps not imported yet, and an import fails without a free descriptor.
    """
    try:
        import traceback  # noqa: PLC0415 - most servers never need it

        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception:  # noqa: BLE001 - an import may raise anything
        places, step = [], error.__traceback__
        while step is not None:
            code = step.tb_frame.f_code
            places.append(f'  File "{code.co_filename}", line {step.tb_lineno}, in {code.co_name}')
            step = step.tb_next
        return "\n".join(["Traceback (most recent call last):", *places, f"{type(error).__name__}: {error}"])


def _format(message: str, args: tuple[object, ...]) -> str:
    return _guarded(lambda: message % args if args else message, message)


def _guarded(make: Callable[[], str], instead: str = "") -> str:
    """Return the text, or why it cannot be shown: formatting a foreign object may raise anything."""
    try:
        return make()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        return f"{instead} (which cannot be shown: {type(error).__name__})"


def _shorten(text: str) -> str:
    left_out = len(text) - LONGEST
    return text if left_out <= 0 else f"{text[: LONGEST // 2]}... ({left_out} characters left out) ...{text[-LONGEST // 2 :]}"


def _origin(error: BaseException | None) -> Hashable:
    """Return what identifies an exception: its class and where it was raised; None for None."""
    if error is None:
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error).__qualname__, trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def _may_block(stream: Any) -> bool:
    """Return whether writing to the stream can block for ever, which needs a descriptor."""
    try:
        return bool(stream.fileno() >= 0)
    except Exception:  # noqa: BLE001 - it has no descriptor
        return False


def _write(stream: Any, text: str) -> None:
    stream.write(text)
    stream.flush()


# --- forks and process exit --------------------------------------------------------------------------------------------

_repeats = Repeats()
_emitter = Emitter()
_comes_before_logging = "logging" not in sys.modules
_find("socketkit.logs")  # see `Log`


def _after_fork() -> None:
    """In a forked child: start afresh, because the parent logs the waiting records and its emitter thread does not exist here."""
    global _repeats, _emitter
    _repeats, _emitter = Repeats(), Emitter(forked_amid_writing=_emitter.thread is not None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register  # registered after logging's own function, so called before it; see also `_find`
def _at_exit() -> None:
    if not ALLOWS_DAEMONS:  # no record waits; one that tells how many were suppressed could keep the interpreter from ending
        return
    finish()
    if _emitter.thread is None:
        _emitter.emit_here()  # Python 3.12.0 and 3.12.1 cannot start threads this late
    else:
        _leave_behind()


def _leave_behind() -> None:
    """Let the interpreter exit although a handler is stuck: otherwise it would wait for the locks of the handler and its stream.

    `logging.shutdown`, which is called next, then closes the other handlers only. It cannot be unregistered any more: Python 3.14 and
    later call every exit function that was registered when the exit began. Source: CPython's Modules/atexitmodule.c, `atexit_callfuncs`.
    """
    stuck, streams = _stuck()
    for reference in stuck:
        with contextlib.suppress(ValueError):  # the handler has been deleted
            _handlers().remove(reference)
    _step_aside(streams)
    for name in ("__stdout__", "__stderr__"):
        if getattr(sys, name) in streams:
            setattr(sys, name, None)


def _stuck() -> tuple[list[Any], list[Any]]:
    """Return weak references to the log handlers that a flush would wait for, and the streams that are in use.

    These handlers are in use, share a stream with one that is, or hand over to one of these, as a `MemoryHandler` does.
    """
    references = list(_handlers())
    held = [reference for reference in references if _is_held(reference())]
    streams = [getattr(reference(), "stream", None) for reference in held]
    if isinstance(_emitter.job, partial) and _emitter.job.func in {_write, _write_plain}:
        streams.append(_emitter.job.args[0])
    streams = [stream for stream in streams if stream is not None]
    stuck = [each for each in references if each in held or getattr(each(), "stream", None) in streams]
    while behind := [each for each in references if each not in stuck and _hands_over_to(each(), stuck)]:
        stuck += behind
    return stuck, streams


def _hands_over_to(handler: logging.Handler | None, others: list[Any]) -> bool:
    target = getattr(handler, "target", None)
    return target is not None and any(each() is target for each in others)


def _handlers() -> list[Any]:
    """Return the list, kept by `logging`, of weak references to the handlers that `logging.shutdown` closes."""
    logging = sys.modules.get("logging")
    return [] if logging is None else logging._handlerList  # noqa: SLF001 - there is no public way


def _is_held(handler: logging.Handler | None) -> bool:
    lock = getattr(handler, "lock", None)
    if lock is None:
        return False
    if not lock.acquire(timeout=0.1):
        return True
    lock.release()
    return False


def _step_aside(streams: list[Any]) -> None:
    """Replace a standard stream that the emitter is stuck in with an equivalent one.

    At exit the interpreter flushes its standard streams before it calls exit functions. It would wait for the lock of the stream's
    buffer, even with nothing to flush.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream in streams:
            with contextlib.suppress(Exception):  # a program's own stream, without a descriptor or encoding
                how = {"encoding": stream.encoding, "errors": stream.errors, "closefd": False}
                setattr(sys, name, open(stream.fileno(), "w", buffering=1, **how))  # noqa: SIM115, PTH123 - it must stay open
