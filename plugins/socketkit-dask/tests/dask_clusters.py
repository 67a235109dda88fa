"""Clusters of separate processes on the loopback interface, and clients for the servers that use them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from socketkit_dask import Dask

from socketkit import Server

HERE = Path(__file__).parent
GUARD = 40.0
"""Seconds after which something counts as hung."""

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "false",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}


def until(condition, timeout=GUARD):
    """Return what the condition returns once it is true: for what nothing announces."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)
    return found


class Kept(Dask):
    """A dispatcher that keeps its live part, for a test to look at."""

    lives: ClassVar[WeakValueDictionary[int, Any]] = WeakValueDictionary()

    def start(self, work):
        live = self.lives[id(self)] = super().start(work)
        return live


class Watched(Server):
    """A server that keeps what its requests fail with. Its dispatcher is `Kept`."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.errors = queue.SimpleQueue()

    @property
    def live(self):
        return Kept.lives[id(self.dispatcher)]

    def handle_error(self, request, client_address):
        self.errors.put(sys.exception())

    def error(self):
        return self.errors.get(timeout=20)


class Scheduler:
    """A scheduler and its workers, each a program. allowed_failures: that setting of the scheduler."""

    def __init__(self, folder, allowed_failures=3):
        self.folder = Path(folder)
        self._env = {**ENVIRONMENT, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures)}
        self._file = self.folder / "scheduler.json"
        self._log = (self.folder / "log").open("ab")
        self.programs = []
        self.address = ""

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        for program in self.programs:
            self.kill(program)
        self._log.close()

    def start(self, port=0):
        """Start the scheduler, and return it once it listens."""
        self._file.unlink(missing_ok=True)
        program = self._run("dask_scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard", f"--scheduler-file={self._file}")
        until(lambda: self._file.exists() and self._file.read_text())
        self.address = json.loads(self._file.read_text())["address"]
        return program

    def work(self, threads=1):
        """Start a worker without a nanny, and return its program."""
        options = (f"--nthreads={threads}", "--no-nanny", "--no-dashboard", "--host=127.0.0.1", f"--local-directory={self.folder}")
        return self._run("dask_worker", self.address, *options)

    def kill(self, program):
        """End a program by SIGKILL."""
        program.kill()
        program.wait()

    @property
    def log(self):
        """What all the programs have printed."""
        return (self.folder / "log").read_text()

    def _run(self, module, *arguments):
        command = (sys.executable, "-m", f"distributed.cli.{module}", *arguments)
        program = subprocess.Popen(command, env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self.programs.append(program)
        return program


class Line:
    """A client that sends lines."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=GUARD)
        self.file = self.socket.makefile("rb")

    def tell(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def hear(self):
        """Return the next line; nothing at the end."""
        with contextlib.suppress(ConnectionError):
            return self.file.readline().decode().rstrip("\n")
        return ""

    def ask(self, line):
        self.tell(line)
        return self.hear()

    def reset(self):
        """Close the connection by a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()


class Held:
    """The FIFOs of a message `hold`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in ("begun", "leave"):
            os.mkfifo(self.folder / name)
        self._begun, self._leave = (os.open(self.folder / name, os.O_RDWR) for name in ("begun", "leave"))

    def begun(self):
        """Wait until one more message is held, and return the number of its process."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._begun], [], [], GUARD)[0], "no message has begun"
            line += os.read(self._begun, 1)
        return int(line)

    def has_begun(self, seconds):
        """Return whether one more message is held within this time."""
        return bool(select.select([self._begun], [], [], seconds)[0])

    def leave(self, count=1):
        """Let messages go on."""
        os.write(self._leave, b"x" * count)

    def __str__(self):
        return f"hold {self.folder}"

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        os.close(self._begun)
        os.close(self._leave)


class Program:
    """A Python program that serves in a process group of its own."""

    def __init__(self, source, *arguments):
        guarded = f"import faulthandler\nfaulthandler.dump_traceback_later({GUARD}, exit=True)\n{source}"
        self._process = subprocess.Popen(
            (sys.executable, "-u", "-c", guarded, *arguments),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.output = ""

    def line(self, start):
        """Wait for a line that begins like this, and return the rest of it."""
        for line in self._process.stdout:
            self.output += line
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise AssertionError(f"it ended without a line {start!r}:\n{self.output}")

    def wait(self):
        """Wait for the end, and return the exit code."""
        self.output += self._process.stdout.read()
        return self._process.wait(GUARD)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.stdout.close()
        self._process.wait()


def is_gone(pid):
    """Return whether there is no such process, or only a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except FileNotFoundError:
        return True
