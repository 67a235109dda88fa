"""A server in its own process: started, measured from outside, and killed with all its children.

Source: proc(5).
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
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from .tools import ROOT

START_SECONDS = 20.0
"""How long a server may take to print its port."""

_TICK = os.sysconf("SC_CLK_TCK")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


class DidNotStartError(Exception):
    """A server ended before it printed its port; the message is the last line of its standard error."""


class Server:
    """A server that prints ``port NUMBER`` to standard output; a context manager."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def __enter__(self) -> Self:
        """Start the server and wait for its port. Raises: DidNotStartError."""
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
        """Send SIGTERM; return how many seconds the server took to end. Raises: subprocess.TimeoutExpired after `seconds`."""
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(seconds)
        return time.monotonic() - began

    def cpu(self) -> float:
        """Return the user and system time of the server and its children, dead or alive, in seconds."""
        return sum(int(field) for _, fields in self._processes() for field in fields[11:15]) / _TICK  # utime, stime, cutime, cstime

    def memory(self) -> int:
        """Return the resident memory of the server and its children in bytes. What processes share counts for each in equal parts (PSS)."""
        rollups = [_read(process / "smaps_rollup") for process, _ in self._processes()]
        return sum(int(found[1]) for found in map(_PSS.search, rollups) if found) * 1024

    def peak(self) -> int:
        """Return the most resident memory that the server and its children have had, in bytes. What processes share counts for each."""
        states = [_read(process / "status") for process, _ in self._processes()]
        return sum(int(found[1]) for found in map(_PEAK.search, states) if found) * 1024

    def threads(self) -> int:
        """Return the number of threads of the server and its children."""
        return sum(int(fields[17]) for _, fields in self._processes())

    def switches(self) -> int:
        """Return the number of context switches of the server's threads so far: each wake-up is one."""
        status = "".join(_read(task / "status") for task in Path(f"/proc/{self.pid}/task").iterdir())
        return sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", status))

    def _processes(self) -> Iterator[tuple[Path, list[str]]]:
        """Find the server and its children: their folders, and their fields as of `_stat`."""
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and (fields := _stat(process)) and int(fields[3]) == self.pid:
                yield process, fields

    def _read_port(self) -> int:
        output, said, deadline = self._process.stdout, b"", time.monotonic() + START_SECONDS
        assert output is not None
        while not (found := re.search(rb"port (\d+)\b", said)):
            ready, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0.0))
            more = os.read(output.fileno(), 4096) if ready else b""
            if not more:
                self._errors.seek(0)
                last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise DidNotStartError(last[0] if last else "no output")
            said += more
        return int(found[1])


def _stat(process: Path) -> list[str]:
    """Return the fields after the process name, which may contain anything: state, parent, group, session, ..."""
    return _read(process / "stat").rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def raise_limits() -> None:
    """Raise the limit on open files of this process and its children to the maximum."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
