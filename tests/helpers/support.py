"""Programs that need this checkout.

What users' tests need as well is in `socketkit.testing`: programs in `socketkit.testing.programs`, clients in `socketkit.testing.clients`.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from socketkit.testing import programs
from socketkit.testing.programs import GUARD, Program, with_path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

SERVE = (sys.executable, "-X", "faulthandler", "-m", "socketkit", "serve")
"""The command `socketkit serve`, which prints the stacks of its threads if it hangs."""

wait_until = programs.wait_until


NO_DESCRIPTOR = """
import os, resource
kept = []
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 20_000))
try:
    while True:
        kept.append(os.dup(0))
except OSError:
    pass
"""
"""Source of a program that goes on without a free descriptor."""


def python(source: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `socketkit.testing.programs.python`; the program can import the modules of the folder `tests`, such as `helpers.rooms`."""
    options.setdefault("env", with_path(TESTS))
    return programs.python(source, *arguments, **options)


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


def free_port() -> int:
    """Return a free port of the loopback interface, below 32768: the system gives higher ports to clients."""
    while True:
        port = random.randrange(10_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for sock in (stream, datagram):
                sock.bind(("127.0.0.1", port))
            return port
