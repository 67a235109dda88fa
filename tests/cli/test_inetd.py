"""`socketkit serve --inetd`: standard input is the socket. Nothing but the handler's reply reaches a client, and the process ends."""

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.dispatchers import EVERY_IN_PLACE
from helpers.support import SERVE, free_port
from socketkit.cli import _inetd
from socketkit.testing.clients import ask, talk
from socketkit.testing.programs import GUARD, Program, run

INETD = (*SERVE[1:], "--inetd")

NOISY = """
import os, sys
from socketkit import BaseRequestHandler, ConversationHandler, Server, StreamRequestHandler

class Noisy(StreamRequestHandler):
    def handle(self):
        print("for standard output", flush=True)
        print("for standard error", file=sys.stderr)
        os.write(0, b"zero"), os.write(1, b"one"), os.write(2, b"two")
        self.wfile.write(b"%s from %d\\n" % (self.rfile.readline().strip(), self.client_address[1]))

class Failing(StreamRequestHandler):
    def handle(self):
        raise ValueError("a traceback for the log")

class Twice(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline()
        self.close_connection = not line
        self.wfile.write(line.upper())

def who(request, client_address, server):
    pid = b"%d" % os.getpid()
    if isinstance(request, tuple):
        request[1].sendto(pid, client_address)
    else:
        request.sendall(pid)
"""


@pytest.fixture
def noisy(here):
    (here / "noisy.py").write_text(NOISY)
    return here


def serve(sock, *arguments, **options):
    """Start the command as inetd does: the socket is its standard input, output and error. It goes on alone with that."""
    streams = {"stdin": sock, "stdout": sock, "stderr": sock, **options}
    command = (sys.executable, "-X", "faulthandler", *INETD[INETD.index("-m") :], *arguments)
    with sock:
        return subprocess.Popen(command, **streams)


@contextlib.contextmanager
def connection():
    """Return both ends of a TCP connection: the client's, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=GUARD)
        with client:
            yield client, listener.accept()[0]


def rest(client):
    return b"".join(iter(lambda: client.recv(1000), b""))


# --- nowait: one connection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", EVERY_IN_PLACE)
def test_one_connection_is_served_and_only_the_handler_writes_to_it(noisy, dispatcher):
    with connection() as (client, accepted), serve(accepted, "noisy:Noisy", "--dispatcher", dispatcher) as process:
        client.sendall(b"hello\n")
        assert rest(client) == b"hello from %d\n" % client.getsockname()[1]
        assert process.wait(GUARD) == 0


def test_a_conversation_may_have_many_requests(noisy):
    with connection() as (client, accepted), serve(accepted, "noisy:Twice") as process:
        for number in range(5):
            client.sendall(b"a%d\n" % number)
            assert client.recv(100) == b"A%d\n" % number
        client.close()
        assert process.wait(GUARD) == 0


@pytest.mark.parametrize(
    "arguments", [("noisy:Failing",), ("noisy:Missing",), ("noisy:Noisy", "--bogus"), ("noisy:Noisy", "--limits", "x")]
)
def test_an_error_never_reaches_the_client(noisy, arguments):
    with connection() as (client, accepted), serve(accepted, *arguments) as process:
        client.sendall(b"hello\n")
        with contextlib.suppress(ConnectionResetError):
            assert rest(client) == b""
        assert process.wait(GUARD) == (0 if arguments == ("noisy:Failing",) else 2)


def test_a_client_that_has_reset_its_connection_is_no_error(noisy):
    with connection() as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        with serve(accepted, "noisy:Noisy") as process:
            assert process.wait(GUARD) == 0


def test_a_standard_error_of_its_own_stays(noisy):
    with connection() as (client, accepted), serve(accepted, "noisy:Failing", stderr=subprocess.PIPE) as process:
        client.sendall(b"hello\n")
        assert rest(client) == b""
        assert b"a traceback for the log" in process.communicate(timeout=GUARD)[1]


def test_a_signal_lets_the_request_finish(here):
    with connection() as (client, accepted):
        reader, writer = os.pipe()
        with serve(accepted, "handlers:Told", stdout=writer) as process:
            os.close(writer)
            client.sendall(b"half")
            assert os.read(reader, 100) == b"begun\n"
            process.terminate()
            client.sendall(b" line\n")
            assert rest(client) == b"HALF LINE\n"
            assert process.wait(GUARD) == 0
        os.close(reader)


# --- wait: a listening or a datagram socket ---------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:2"])
def test_a_listening_socket_is_served_until_it_is_idle(here, dispatcher):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        with serve(listener.dup(), "handlers:Upper", "--idle", "500ms", "--dispatcher", dispatcher) as process:
            assert [talk(where, b"%d a\n" % number, GUARD) for number in range(10)] == [b"%d A\n" % number for number in range(10)]
            assert process.wait(GUARD) == 0
        with socket.create_connection(where, GUARD) as waiting:  # inetd still listens: the next process serves it
            waiting.sendall(b"next\n")
            with serve(listener.dup(), "handlers:Upper", "--idle", "0") as process:
                assert waiting.recv(100) == b"NEXT\n"
                waiting.close()
                assert process.wait(GUARD) == 0


def test_a_server_that_runs_a_request_is_not_idle(here):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with (
            serve(listener.dup(), "handlers:Upper", "--idle", "10ms") as process,
            socket.create_connection(listener.getsockname(), GUARD) as client,
        ):
            for _ in range(3):
                client.sendall(b"a\n")
                assert client.recv(100) == b"A\n"
                time.sleep(0.3)  # many times its patience
            assert process.poll() is None
            client.close()
            assert process.wait(GUARD) == 0


def test_a_datagram_socket_is_served_until_it_is_idle(here):
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        with serve(bound.dup(), "handlers:UpperDatagram", "--idle", "500ms") as process:
            assert [ask(bound.getsockname(), b"a", GUARD) for _ in range(3)] == [b"A"] * 3
            assert process.wait(GUARD) == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--inetd", "all.toml"), "--inetd applies only to a HANDLER; leave it out."),
        (("--inetd", "handlers:Upper", "--listen", "tcp://127.0.0.1:0"), "--inetd serves the socket that is standard input; leave --listen out."),
        (("--inetd", "handlers:Upper"), "standard input is the socket, and it is not a socket; let inetd start this, or give --listen URL."),
        (("--inetd", "handlers:Upper", "--idle", "long"), "'long' is not a duration; write seconds, or 500ms, 30s, 5m"),
        (("--idle", "3s", "handlers:Upper", "--listen", "tcp://127.0.0.1:0"), "--idle applies only with --inetd."),
    ],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_refused(here, arguments, sentence):
    assert sentence in run(*SERVE, *arguments, code=2).stderr


def test_a_terminal_is_refused(here):
    ours, theirs = pty.openpty()
    try:
        assert "and it is a terminal; let inetd start this" in run(*SERVE, "--inetd", "handlers:Upper", stdin=theirs, code=2).stderr
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (socket.socket, "neither listens nor is connected; pass it on after listen()."),
        (
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
            "a socket of neither type stream nor dgram; change that in inetd.conf.",
        ),
    ],
)
def test_a_socket_of_another_kind_is_refused(here, make, sentence):
    with make() as sock:
        assert sentence in run(*SERVE, "--inetd", "handlers:Upper", stdin=sock, code=2).stderr


def test_help_is_for_people(here):
    assert "--inetd" in run(*SERVE, "--inetd", "--help").stdout


def test_a_restart_fails_and_harms_nothing(here):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        with Program(*SERVE, "handlers:Upper", "--inetd", stdin=listener) as program:
            assert talk(where, b"a\n", GUARD) == b"A\n"
            program.send_signal(signal.SIGUSR2)
            program.line("restart failed, and this process goes on serving: the new one ended with exit code 2")
            assert talk(where, b"b\n", GUARD) == b"B\n"
            assert program.stop() == 0


# --- the system log ---------------------------------------------------------------------------------------------------


def test_the_system_log_gets_whole_lines(monkeypatch):
    syslog = pytest.importorskip("syslog")
    sent = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: sent.append((priority, line)))
    log = _inetd.SystemLog()
    print("one\ntwo", end="", file=log)
    assert sent == [(syslog.LOG_WARNING, "one")]
    print(" and\0\udcff", file=log)
    assert sent[1:] == [(syslog.LOG_WARNING, "two and\\0\\udcff")]


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.fixture
def inetd(noisy, tmp_path):
    """Return a function that runs inetd with these lines, in which PORT is a free port and SERVE the command; it gives the port."""
    program = shutil.which("inetd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or os.geteuid():
        pytest.skip("inetd is not installed, or this is not root")

    @contextlib.contextmanager
    def running(kind, handler, *arguments):
        port, command = free_port(), f"{sys.executable} {sys.executable} -m socketkit serve {handler} --inetd"
        protocol = "udp" if kind.startswith("dgram") else "tcp"
        config = tmp_path / "inetd.conf"
        config.write_text(f"127.0.0.1:{port} {kind.split()[0]} {protocol} {kind.split()[1]} root {' '.join((command, *arguments))}\n")
        with Program(program, "-i", str(config), env={**os.environ, "PYTHONPATH": str(noisy)}):
            yield ("127.0.0.1", port)

    return running


def until_it_listens(talk_to, *arguments):
    """Return what a client gets, once inetd listens."""
    deadline = time.monotonic() + GUARD
    while True:
        try:
            return talk_to(*arguments)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_inetd_serves_each_connection_in_a_process_of_its_own(inetd):
    with inetd("stream nowait", "noisy:Noisy") as where:
        for _ in range(3):
            assert until_it_listens(talk, where, b"hello\n", GUARD).startswith(b"hello from ")


def test_inetd_takes_its_listening_socket_back(inetd):
    with inetd("stream wait", "noisy:who", "--idle", "200ms") as where:
        until_another_answers(talk, where)


def test_inetd_takes_its_datagram_socket_back(inetd):
    with inetd("dgram wait", "noisy:who", "--idle", "200ms") as where:
        until_another_answers(ask, where)


def until_another_answers(talk_to, where):
    """Wait until a process has become idle and ended, and inetd has started another one for the next client."""
    first = second = until_it_listens(talk_to, where, b"", GUARD)
    while second == first:
        time.sleep(0.7)  # with a client more often than that, it would not become idle
        second = talk_to(where, b"", GUARD)


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_systemd_socket_activate_serves_each_connection_in_a_process_of_its_own(noisy):
    port = free_port()
    activate = ("systemd-socket-activate", "--inetd", "-a", "-l", f"127.0.0.1:{port}", "-E", f"PYTHONPATH={Path.cwd()}", sys.executable)
    with Program(*activate, "-m", "socketkit", "serve", "noisy:Noisy", "--inetd") as program:
        program.line("Listening on")
        for _ in range(3):
            assert talk(("127.0.0.1", port), b"hello\n", GUARD).startswith(b"hello from ")
