"""Process 1 of a container: it starts the program in a child, passes signals on to that, and reaps orphans.

The system ignores a signal for process 1 unless that has a handler, and gives it the orphans of every program that ends. It cannot tell
these from children that its own program waits for, and may not take their exit status. So process 1 does nothing but this, as
``docker run --init`` and tini(1) do. Source: pid_namespaces(7), kill(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

VARIABLE = "SOCKETKIT_INIT"
"""The environment variable that holds the number of this process, for the program: it would end with the program."""


def run_in_child() -> None:
    """Fork, and return in the child, which goes on as the program. The parent stays inside, and exits with the child's exit code.

    A child that a signal ended makes that 128 + signal, as in a shell. Call it first of all, while there are no threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    init, pid = os.getpid(), os.fork()
    if pid:
        _attend(pid)
    _leave_group()
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if os.environ.get(name) == str(init):
            os.environ[name] = str(os.getpid())
    os.environ[VARIABLE] = str(init)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def waits_for_this_process() -> bool:
    """Return whether this process's parent is such a process, which ends with it."""
    return os.environ.get(VARIABLE) == str(os.getppid())


def _attend(pid: int) -> None:
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number == signal.SIGCHLD:
            _reap(pid)
        else:
            os.kill(pid, number)


def _reap(program: int) -> None:
    """Reap all children that have ended; exit with the program's exit code if it is among them."""
    done = -1
    while done:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _leave_group() -> None:
    """Make the program a foreground group of its own, so that a terminal's Ctrl-C reaches it once, and not by process 1 as well."""
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no terminal, or standard input is closed
        os.tcsetpgrp(sys.stdin.fileno(), os.getpid())
