"""Programs in separate processes, and plain clients, for all tests.

Code that forks, handles signals or changes limits runs in a separate process. A process that hangs prints the stacks of its threads.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

SERVE = (sys.executable, "-X", "faulthandler", "-m", "socketkit", "serve")
"""The command `socketkit serve`, which prints the stacks of its threads if it hangs."""

GUARD = 30.0
"""Seconds after which a program counts as hung."""

_GUARDED = "import faulthandler as _f; _f.dump_traceback_later({seconds}, exit=True); del _f\n"


def wait_until(condition: Callable[[], object], timeout: float = GUARD) -> None:
    """Return once the condition is true: for what nothing announces. Fail the test if it never becomes true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.001)


def python(source: str, *arguments: str, guard: float = GUARD, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python source as a separate program and return its output as text.

    The program can import the modules of the folder `tests`, such as `helpers.support`. The test fails unless the program exits with
    `code`. A program that hangs ends after `guard` seconds and prints all its stacks. `options` are those of `subprocess.Popen`.
    """
    options.setdefault("env", with_path(TESTS))
    command = [sys.executable, "-c", _GUARDED.format(seconds=guard) + source, *arguments]
    return run(*command, guard=guard + 5, code=code, **options)


def run(*command: str, guard: float = GUARD, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output as text; fail the test if it hangs or does not exit with `code`."""
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


class _Group(threading.Thread):
    """A program with its own process group, and a thread that waits for the program to end without reaping it.

    `kill` reaps the program. Until then, no other process or group can get its number and be killed by mistake.
    """

    def __init__(self, command: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.process = subprocess.Popen(command, start_new_session=True, **options)
        self.code: int | None = None  # set when it has ended
        self.start()

    def run(self) -> None:
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
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


class Program:
    """A program that keeps running; a context manager. Tests can wait for its lines, and it ends with the block.

    Python programs run with ``-X faulthandler``: a program that does not end when told to prints the stacks of its threads.
    """

    def __init__(self, *command: str, **options: Any) -> None:
        self._command = command
        self._options = options
        self._lines: list[str] = []  # its whole output; the last line may be incomplete
        self._more = threading.Condition()
        self._ended = False

    @classmethod
    def python(cls, *arguments: str, **options: Any) -> Self:
        """Return the program ``python arguments...``."""
        return cls(sys.executable, "-u", "-X", "faulthandler", *arguments, **options)

    def __enter__(self) -> Self:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._group = _Group(self._command, **{**pipes, **self._options})
        self.pid = self._group.process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._group.kill()
        self._reader.join()
        self._group.process.stdout.close()

    @property
    def output(self) -> str:
        """The output so far, of both streams; complete once `wait` has returned."""
        with self._more:
            return "".join(self._lines)

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._group.code

    def line(self, pattern: str, count: int = 1, timeout: float = GUARD) -> list[re.Match[str]]:
        """Wait for the first `count` matches of the pattern in its lines, and return them; fail the test if they never appear."""
        deadline = time.monotonic() + timeout
        with self._more:
            while len(found := [match for match in (re.search(pattern, line) for line in self._whole_lines()) if match]) < count:
                if self._ended or not self._more.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"{self._command} printed {len(found)} lines with {pattern!r}, not {count}:\n{self.output}")
        return found[:count]

    def serving(self, count: int = 1) -> list[str]:
        """Wait until ``socketkit serve`` prints the URLs that it serves, and return them."""
        return [match[1] for match in self.line(r"^serving (\S+) \(", count)]

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, but not to its group; has no effect if the program has ended."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = GUARD) -> int:
        """Wait for the program to end, and return the exit code; fail the test, with its stacks, if it does not end."""
        self._group.join(timeout)
        if self._group.code is None:
            self.send_signal(signal.SIGABRT)
            self._reader.join(5)
            raise AssertionError(f"{self._command} did not end:\n{self.output}")
        with self._more:  # the output is in the pipe, and moves to the lines until the pipe is empty
            while not self._ended and _is_readable(self._group.process.stdout, 0):
                self._more.wait(1)
        return self._group.code

    def stop(self, number: int = signal.SIGTERM, timeout: float = GUARD) -> int:
        """Send a signal and return the exit code, as `wait`."""
        self.send_signal(number)
        return self.wait(timeout)

    def _whole_lines(self) -> list[str]:
        return self._lines if self._ended or not self._lines or self._lines[-1].endswith("\n") else self._lines[:-1]

    def _read(self) -> None:
        pipe, decoder = self._group.process.stdout, codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while not self._ended:
            _is_readable(pipe, None)
            with self._more:  # reading and storing are one step for other threads
                data = os.read(pipe.fileno(), 65536)
                self._ended = not data
                unfinished = self._lines.pop() if self._lines and not self._lines[-1].endswith("\n") else ""
                self._lines += io.StringIO(unfinished + decoder.decode(data, self._ended)).readlines()
                self._more.notify_all()


def _is_readable(pipe: IO[bytes], milliseconds: float | None) -> bool:
    """Wait until the pipe has data or has ended; return whether it has."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(milliseconds))


def gone(*pids, within=2.0):
    """Return whether all of these processes, which need not be children of this one, end in time."""
    end = time.monotonic() + within
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                return False
        finally:
            os.close(descriptor)
    return True


class Managed(Program):
    """A program under a service manager, whose socket is ``notify`` in the folder. Tests can wait for its messages."""

    def __init__(self, folder: Path | str, *command: str, env: dict[str, str], **options: Any) -> None:
        place = os.path.join(os.path.abspath(folder), "notify")
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(place)
        self._manager.settimeout(GUARD)
        super().__init__(*command, env={**os.environ, "NOTIFY_SOCKET": place, **env}, **options)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._manager.close()

    def told(self) -> list[str]:
        """Wait for the next message to the manager, and return its lines."""
        return self._manager.recv(4096).decode().splitlines()


def with_path(*folders: Path | str) -> dict[str, str]:
    """Return this process's environment with the folders first on Python's path."""
    path = [str(folder) for folder in folders] + [each for each in (os.environ.get("PYTHONPATH"),) if each]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def address(url: str) -> Any:
    """Return the address that a client connects to for a server's URL."""
    scheme, _, place = url.partition(":")
    if scheme.startswith("unix"):
        return "\0" + place[1:] if place.startswith("@") else place.removeprefix("//")
    host, _, port = place.removeprefix("//").rpartition(":")
    return host.strip("[]"), int(port)


def free_port() -> int:
    """Return a free port of the loopback interface, below 32768: the system gives higher ports to clients."""
    while True:
        port = random.randrange(10_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for sock in (stream, datagram):
                sock.bind(("127.0.0.1", port))
            return port


def talk(where: Any, data: bytes, timeout: float = 10.0) -> bytes:
    """Connect, send the data, shut down the sending side, and return the whole reply."""
    family = socket.AF_UNIX if isinstance(where, str | bytes) else socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(where)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def ask(where: Any, data: bytes, timeout: float = 10.0) -> bytes:
    """Send one datagram and return the reply."""
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect(where)
        client.send(data)
        return client.recv(65536)
