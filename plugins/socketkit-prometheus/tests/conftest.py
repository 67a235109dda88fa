"""Programs that serve. Every test leaves the process as it found it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from socketkit.testing.pytest_plugin import nothing_left_behind  # noqa: F401 - importing a fixture activates it

sys.path.insert(0, str(Path(__file__).parent))

from prometheus_support import GUARDED, LATE, Running


def pytest_runtest_setup(item):
    """Skip a test whose client program is not installed."""
    for mark in item.iter_markers("clients"):
        if shutil.which(mark.args[0]) is None:
            pytest.skip(f"{mark.args[0]} is not installed")


@pytest.fixture
def start():
    """Return a function that starts a program of Python source with arguments, or a command, until the test is over."""
    with contextlib.ExitStack() as running:

        def begin(source, *arguments, **options):
            command = [sys.executable, "-u", "-c", GUARDED + source, *arguments] if isinstance(source, str) else [*source, *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
            running.callback(end, process)
            return Running(process)

        yield begin


def end(process):
    """Kill a program and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LATE)
