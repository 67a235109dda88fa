"""Run the scenarios of one dispatcher and transport in a separate process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from helpers.support import TESTS
from socketkit.testing.programs import with_path


def failures(subject: str, dispatcher: str, transport: str, rows: Sequence[str]) -> Iterator[str | None]:
    """Yield the failure of each row in turn, as soon as it is known; None if the row passed.

    If the process dies during a row, only that row fails: the other rows run in a new process. The process ends when the iterator is
    closed.
    """
    left = list(rows)
    while left:
        for failure in _process(subject, dispatcher, transport, left):
            yield failure
            del left[0]


def _process(subject: str, dispatcher: str, transport: str, rows: Sequence[str]) -> Iterator[str | None]:
    """Yield the failures of the rows, up to the one during which the process died."""
    command = [sys.executable, "-m", "faults.run", subject, dispatcher, transport, *rows]
    patience = {"socketkit": "5", "socketserver": "1"}[subject]  # keep the expected failures of the standard library short
    if dispatcher == "interpreters":
        patience = "30"  # they need seconds to start on a busy machine
    pipes = {
        "env": {**with_path(TESTS), "FAULTS_PATIENCE": patience, "PYTHONFAULTHANDLER": "1"},
        "stdout": subprocess.PIPE,
        "text": True,
        "errors": "replace",
        "start_new_session": True,
    }
    with tempfile.TemporaryFile("w+", errors="replace") as errors, subprocess.Popen(command, stderr=errors, **pipes) as child:
        ender = threading.Thread(target=_end_with, args=(child,))
        ender.start()
        left = len(rows)
        try:
            for line in child.stdout:
                left -= 1
                yield json.loads(line)["failure"]
        except GeneratorExit:
            child.kill()
            raise
        finally:
            ender.join()
        if left:
            errors.seek(0)
            yield f"its process ended: exit code {child.returncode}\n{errors.read()[-6000:]}"


def _end_with(child: subprocess.Popen[str]) -> None:
    """Kill the children that a process leaves when it ends: they would keep the pipe open."""
    child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
