"""Programs that a test runs in processes of their own, because they fork, handle signals or change limits. For POSIX systems.

Each has a process group of its own, which is killed in the end, so no process outlives the test. What a program has printed is in the
message of the AssertionError when it fails or hangs, with the stacks of its threads where it is a Python program that hangs.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from socketkit.seams import Seconds

GUARD: Seconds = 30.0
"""Seconds after which a program counts as hung."""

LAST_WORDS = 5.0
"""Seconds that an aborted program has to print the stacks of its threads."""

_GUARDED = "import faulthandler as _f; _f.dump_traceback_later({seconds}, exit=True); del _f\n"


def python(source: str, *arguments: str, guard: Seconds = GUARD, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python source as a separate program to its end, and return its output as text.

    It runs in this interpreter's environment, without standard input. A program that hangs ends after `guard` seconds and prints the
    stacks of all its threads.

    code: what it has to exit with; below 0: the number of the signal that ends it. options: those of `subprocess.Popen`.
    Raises: AssertionError, with the output, if the program hangs or exits otherwise.
    """
    command = [sys.executable, "-c", _GUARDED.format(seconds=guard) + source, *arguments]
    return run(*command, guard=guard + LAST_WORDS, code=code, **options)


def run(*command: str, guard: Seconds = GUARD, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run any program to its end, and return its output as text. Arguments and errors are those of `python`."""
    deadline = time.monotonic() + guard
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    group = _Group(command, **{**pipes, **options})
    with group.process, contextlib.ExitStack() as readers:
        try:
            output, errors = _Reader(group.process.stdout), _Reader(group.process.stderr)
            for reader in (output, errors):
                readers.callback(reader.join)
                reader.start()
            for thread in (output, errors, group):
                thread.join(max(0.0, deadline - time.monotonic()))
            hung = any(thread.is_alive() for thread in (output, errors, group))
        finally:
            group.kill()
    if hung:
        raise AssertionError(f"{command} hung:\n{output.text}\n{errors.text}")
    if group.code != code:
        raise AssertionError(f"{command} exited with {group.code}, not {code}:\n{output.text}\n{errors.text}")
    return subprocess.CompletedProcess(command, code, output.text, errors.text)


class Program:
    """A program that keeps running; a context manager. A test can wait for its lines, and it ends with the block.

    It has no standard input. Its two output streams are one. Python programs run with ``-X faulthandler``: one that has to be aborted
    prints the stacks of its threads.

    options: those of `subprocess.Popen`, except `stdout`.
    """

    pid: int
    """Its process number, once the block has begun."""

    def __init__(self, *command: str, **options: Any) -> None:
        self._command = command
        self._options = options
        self._lines: list[str] = []  # its whole output; the last line may be incomplete
        self._more = threading.Condition()
        self._ended = False

    @classmethod
    def python(cls, *arguments: str, **options: Any) -> Self:
        """Return the program ``python ARGUMENTS...`` of this interpreter, which prints without a buffer."""
        return cls(sys.executable, "-u", "-X", "faulthandler", *arguments, **options)

    def __enter__(self) -> Self:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._group = _Group(self._command, **{**pipes, **self._options})
        stdout = self._group.process.stdout
        assert stdout is not None  # noqa: S101 - it is a pipe
        self._pipe = stdout
        self.pid = self._group.process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._group.kill()
        self._reader.join()
        self._pipe.close()

    @property
    def output(self) -> str:
        """Its output so far, of both streams; complete once `wait` has returned."""
        with self._more:
            return "".join(self._lines)

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended; below 0: the number of the signal that has ended it."""
        return self._group.code

    def line(self, pattern: str, count: int = 1, timeout: Seconds = GUARD) -> list[re.Match[str]]:
        """Wait for the first `count` lines that the regular expression is found in, and return the matches.

        Raises: AssertionError, with the output and the stacks of the program, which is aborted, if the lines do not come in time.
        """
        deadline = time.monotonic() + timeout
        with self._more:
            while len(found := [match for match in (re.search(pattern, line) for line in self._whole_lines()) if match]) < count:
                if self._ended or not self._more.wait(max(0.0, deadline - time.monotonic())):
                    break
        if len(found) < count:
            self._abort()
            raise AssertionError(f"{self._command} printed {len(found)} lines with {pattern!r}, not {count}:\n{self.output}")
        return found[:count]

    def serving(self, count: int = 1) -> list[str]:
        """Wait until ``socketkit serve`` prints the URLs of this many listeners, and return them. Raises: as `line`."""
        return [match[1] for match in self.line(r"^serving (\S+) \(", count)]

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, but not to its group; has no effect if the program has ended."""
        os.kill(self.pid, number)

    def wait(self, timeout: Seconds = GUARD) -> int:
        """Wait for the program to end, and return its exit code.

        Raises: AssertionError, with the output and the stacks of the program, which is aborted, if it does not end in time.
        """
        self._group.join(timeout)
        code = self._group.code
        if code is None:
            self._abort()
            raise AssertionError(f"{self._command} did not end:\n{self.output}")
        with self._more:  # the output is in the pipe, and moves to the lines until the pipe is empty
            while not self._ended and _is_readable(self._pipe, 0):
                self._more.wait(1)
        return code

    def stop(self, number: int = signal.SIGTERM, timeout: Seconds = GUARD) -> int:
        """Send a signal, wait for the program to end, and return its exit code. Raises: as `wait`."""
        self.send_signal(number)
        return self.wait(timeout)

    # inside

    def _abort(self) -> None:
        """End the program in a way that shows what it does."""
        self.send_signal(signal.SIGABRT)
        self._reader.join(LAST_WORDS)

    def _whole_lines(self) -> list[str]:
        return self._lines if self._ended or not self._lines or self._lines[-1].endswith("\n") else self._lines[:-1]

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while not self._ended:
            _is_readable(self._pipe, None)
            with self._more:  # reading and storing are one step for other threads
                data = os.read(self._pipe.fileno(), 65536)
                self._ended = not data
                unfinished = self._lines.pop() if self._lines and not self._lines[-1].endswith("\n") else ""
                self._lines += io.StringIO(unfinished + decoder.decode(data, self._ended)).readlines()
                self._more.notify_all()


def wait_until(condition: Callable[[], object], timeout: Seconds = GUARD) -> None:
    """Return once the condition is true: for what nothing announces, such as the counts of a server.

    Raises: AssertionError, if it does not become true in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"the condition did not become true within {timeout:g} s")
        time.sleep(0.001)


def with_path(*folders: Path | str) -> dict[str, str]:
    """Return this process's environment with the folders first on Python's path, for the option `env` of a program."""
    path = [str(folder) for folder in folders] + [each for each in (os.environ.get("PYTHONPATH"),) if each]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


# --- processes -------------------------------------------------------------------------------------------------------


class _Group(threading.Thread):
    """A program with its own process group, and a thread that waits for the program to end without reaping it.

    `kill` reaps the program. Until then, no other process or group can get its number and be killed by mistake.
    """

    def __init__(self, command: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)  # noqa: S603 - the test's own
        self.code: int | None = None  # set when it has ended
        self.start()

    def run(self) -> None:
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None  # noqa: S101 - only with WNOHANG
        self.code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def kill(self) -> None:
        """Kill the rest of the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: only dead processes are left (BSD)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.join()
        self.process.wait()


class _Reader(threading.Thread):
    """Reads a stream, if there is one, to its end."""

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__()
        self._stream = stream
        self.text: str | None = None

    def run(self) -> None:
        if self._stream is not None:
            self.text = self._stream.read()


def _is_readable(pipe: IO[bytes], milliseconds: float | None) -> bool:
    """Wait until the pipe has data or has ended; return whether it has."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(milliseconds))
