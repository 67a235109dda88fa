"""Signals at every moment of `socketkit serve`: while it imports, once it has served, and as process 1 of a container."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import pytest

from helpers.support import SERVE
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program

ISOLATED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

WAIT = """
gate = os.open("gate", os.O_RDONLY | os.O_NONBLOCK)
while not select.select([gate], [], [], 0.05)[0]:  # again and again: a signal just before a system call interrupts only the next one
    pass
os.read(gate, 10)
os.close(gate)
"""

HELD = f"""
import os, select
print("imports", os.getpid(), flush=True)
{WAIT}

def pid(request, client_address, server):
    request.sendall(b"%d" % os.getpid())
"""


def can_isolate():
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except FileNotFoundError:
        return False


isolated = pytest.mark.skipif(not can_isolate(), reason="needs the right to make a pid namespace")


@pytest.fixture
def gate(here):
    """Have a module that waits in its import until the gate is written to."""
    (here / "held.py").write_text(HELD)
    os.mkfifo("gate")
    return here / "gate"


# --- while the handler is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_an_import(gate, number):
    with Program(*SERVE, "held:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.line("imports")
        assert program.stop(number) == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}[number]


def test_a_restart_that_is_asked_for_during_the_import_is_made_once_the_server_serves(gate):
    with Program(*SERVE, "held:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.line("imports")
        program.send_signal(signal.SIGUSR2)
        gate.write_text("go")
        program.line("imports", 2)
        gate.write_text("go")
        where = address(program.serving(2)[0])
        assert program.wait() == 0
        os.kill(int(talk(where, b"")), signal.SIGTERM)


def test_the_end_of_the_terminal_during_the_import_stops_the_server_once_it_serves(gate):
    with Program(*SERVE, "held:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.line("imports")
        program.send_signal(signal.SIGHUP)
        gate.write_text("go")
        assert program.wait() == 0


def test_a_restart_that_the_lifecycle_does_not_offer_has_the_usual_effect(gate):
    with Program(*SERVE, "held:pid", "--listen", "tcp://127.0.0.1:0", "--lifecycle", "graceful:restart=false") as program:
        program.line("imports")
        program.send_signal(signal.SIGUSR2)
        gate.write_text("go")
        assert program.wait() == -signal.SIGUSR2


# --- at the end ---------------------------------------------------------------------------------------------------------

LEAVES = f"""
import atexit, os, select, threading

def leave():
    print("leaves", flush=True)
{indent(WAIT, "    ")}

atexit.register(leave)

def pid(request, client_address, server):
    request.sendall(b"%d" % os.getpid())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_signal_does_not_change_the_exit_code_of_a_server_that_has_ended(gate, number):
    Path("leaves.py").write_text(LEAVES)
    with Program(*SERVE, "leaves:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.serving()
        program.send_signal(number)
        program.line("^leaves")
        program.send_signal(number)
        gate.write_text("go")
        assert program.wait() == 0


def test_the_third_stop_signal_leaves_even_if_the_server_has_ended(gate):
    Path("leaves.py").write_text(LEAVES)
    with Program(*SERVE, "leaves:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.serving()
        program.send_signal(signal.SIGINT)
        program.line("^leaves")
        program.send_signal(signal.SIGTERM)
        program.send_signal(signal.SIGINT)
        assert program.wait() in {128 + signal.SIGTERM, 128 + signal.SIGINT}


# --- as process 1 -------------------------------------------------------------------------------------------------------

INIT = """
import os, subprocess

def pid(request, client_address, server):
    code = subprocess.run(["/bin/sh", "-c", "sh -c 'exit 0' & exit 7"]).returncode  # which leaves an orphan
    request.sendall(b"%d %d" % (os.getpid(), code))
"""


@isolated
def test_process_1_reaps_orphans_and_takes_no_exit_code_from_its_program(here):
    Path("init.py").write_text(INIT)
    listen = ("--listen", "tcp://127.0.0.1:0")
    with Program(*ISOLATED, *SERVE, "init:pid", *listen) as program:
        where = address(program.serving()[0])
        for _ in range(20):
            assert talk(where, b"").endswith(b" 7")
        [init] = children(program.pid)
        while zombies(init):
            time.sleep(0.01)  # it reaps them as they end
        os.kill(init, signal.SIGTERM)
        assert program.wait() == 0


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(pid):
    """Return the ended children that the process has not reaped yet. It may reap one at any time."""
    found = []
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(child)
    return found


@isolated
def test_a_stop_signal_ends_an_import_in_process_1_too(gate):
    with Program(*ISOLATED, *SERVE, "held:pid", "--listen", "tcp://127.0.0.1:0") as program:
        program.line("imports")
        [init] = children(program.pid)
        os.kill(init, signal.SIGTERM)
        assert program.wait() == 128 + signal.SIGTERM


@isolated
def test_a_program_under_run_in_process_1_gets_its_signals_and_gives_its_exit_code(here):
    Path("told.py").write_text("import signal, sys\nprint('waits', flush=True)\nsys.exit(signal.sigwait({signal.SIGTERM}) - 10)\n")
    masked = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    with Program(*ISOLATED, sys.executable, "-c", masked, "-m", "socketkit", "run", "told.py") as program:
        program.line("waits")
        [init] = children(program.pid)
        os.kill(init, signal.SIGTERM)
        assert program.wait() == 5


@isolated
def test_a_server_in_process_1_does_not_restart(here):
    with Program(*ISOLATED, *SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0") as program:
        where = address(program.serving()[0])
        [init] = children(program.pid)
        os.kill(init, signal.SIGUSR2)
        program.line("restart failed, .*: process 1 ends with this process")
        assert talk(where, b"a\n") == b"A\n"
        os.kill(init, signal.SIGTERM)
        assert program.wait() == 0


@isolated
def test_a_socket_that_is_passed_to_process_1_is_served(here, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        start = f"import os, sys; os.dup2({sock.fileno()}, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        command = (*ISOLATED, sys.executable, "-c", start, *SERVE[1:], "handlers:Upper", "--listen", "systemd://web")
        monkeypatch.setenv("LISTEN_PID", "1")
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "web")
        with Program(*command, pass_fds=[sock.fileno()]) as program:
            program.serving()
            assert talk(sock.getsockname(), b"a\n") == b"A\n"
