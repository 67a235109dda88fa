"""A server in a process of its own: started, asked for its port, measured from outside, and killed with all its children.

Source: proc(5), for what is read.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from .tools import ROOT

START_SECONDS = 20.0
"""How long a server may take until it says its port."""

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class DidNotStartError(Exception):
    """A server ended before it said its port; the text is the last thing it wrote to standard error."""


class Server:
    """A server that says ``port NUMBER`` on its standard output; for use with `with`."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def __enter__(self) -> Self:
        """Start it and wait for its port. Raises: DidNotStartError."""
        self._errors = tempfile.TemporaryFile()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self.port = self._read_port()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def stop(self, seconds: float = START_SECONDS) -> float:
        """Send SIGTERM and return how many seconds its end took. Raises: subprocess.TimeoutExpired after so many seconds."""
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(seconds)
        return time.monotonic() - began

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used, user and system, with its children, dead or alive."""
        ticks = 0
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and (fields := _stat(process)) and int(fields[3]) == self.pid:
                ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
        return ticks / _TICK

    def memory(self) -> int:
        """Return its resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def switches(self) -> int:
        """Return how often its threads have been put on a processor so far: each wake-up is one."""
        status = "".join(_read(task / "status") for task in Path(f"/proc/{self.pid}/task").iterdir())
        return sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", status))

    def _read_port(self) -> int:
        output, said, deadline = self._process.stdout, b"", time.monotonic() + START_SECONDS
        assert output is not None
        while not (found := re.search(rb"port (\d+)\b", said)):
            ready, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0.0))
            more = os.read(output.fileno(), 4096) if ready else b""
            if not more:
                self._errors.seek(0)
                last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise DidNotStartError(last[0] if last else "it said nothing")
            said += more
        return int(found[1])


def _stat(process: Path) -> list[str]:
    """Return the fields after the name, which may hold anything: state, parent, group, session, ..."""
    return _read(process / "stat").rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def raise_limits() -> None:
    """Let this process and its children open as many files as the system allows them to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
