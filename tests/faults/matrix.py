"""Run many scenarios, at least two processes at a time, and report each result at once: ``python -m faults.matrix JOBS``.

JOBS is a JSON file, a list of [subject, dispatcher, transport, [row, ...]]. If a process dies during a row, only that row fails: the
other rows run in a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_printing = threading.Lock()


def report(subject: str, dispatcher: str, transport: str, row: str, failure: str | None) -> None:
    with _printing:
        print(json.dumps([subject, dispatcher, transport, row, failure]), flush=True)


def run(subject: str, dispatcher: str, transport: str, rows: list[str]) -> None:
    left = list(rows)
    while left:
        begun = None
        for said in process(subject, dispatcher, transport, left):
            if "begin" in said:
                begun = said["begin"]
            elif "row" in said:
                report(subject, dispatcher, transport, said["row"], said["failure"])
                left.remove(said["row"])
                begun = None
            elif left:  # the process ended too early
                lost = begun or left[0]
                report(subject, dispatcher, transport, lost, f"its process ended: {said['end']}")
                left.remove(lost)


def process(subject: str, dispatcher: str, transport: str, rows: list[str]) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "faults.run", subject, dispatcher, transport, *rows]
    patience = {"socketkit": "5", "socketserver": "1"}[subject]  # keep the expected failures of the standard library short
    pipes = {
        "env": {**os.environ, "FAULTS_PATIENCE": patience},
        "stdout": subprocess.PIPE,
        "text": True,
        "errors": "replace",
        "start_new_session": True,
    }
    with tempfile.TemporaryFile("w+", errors="replace") as errors, subprocess.Popen(command, stderr=errors, **pipes) as child:
        ender = threading.Thread(target=_end_with, args=(child,))
        ender.start()
        for line in child.stdout:
            yield json.loads(line)
        ender.join()
        errors.seek(0)
        yield {"end": f"exit code {child.returncode}\n{errors.read()[-6000:]}"}


def _end_with(child: subprocess.Popen[str]) -> None:
    """Kill the children that a process leaves when it ends: they would keep the pipe open."""
    child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def main(jobs: str) -> None:
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for future in [pool.submit(run, *job) for job in json.loads(Path(jobs).read_text())]:
            future.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
