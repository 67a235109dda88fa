"""Fixtures of all tests. Every test leaves the process as it found it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from socketkit.testing.pytest_plugin import nothing_left_behind, serve  # noqa: F401 - importing a fixture makes it available

GUARD = 30
"""Seconds after which a program counts as hung."""

_GUARDED = f"import faulthandler; faulthandler.dump_traceback_later({GUARD}, exit=True)\n"


@pytest.fixture(scope="session")
def program():
    """Return a function that runs Python source as a program of its own, and returns its output. The program has to end with this code."""

    def run(source: str, code: int = 0) -> str:
        command = [sys.executable, "-W", "error", "-c", _GUARDED + textwrap.dedent(source)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD + 10, check=False)
        assert ended.returncode == code, f"it exited with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
        assert "Cancelled" not in ended.stderr, ended.stderr
        return ended.stdout

    return run
