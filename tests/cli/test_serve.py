"""`socketkit serve`: what it says, what it answers, and how it ends."""

import re
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.support import SERVE
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD, Program

BOTH = """
[servers.echo]
listen = ["tcp://127.0.0.1:0", "unix:///{here}/echo.sock"]
handler = "handlers:{stream}"

[servers.dns]
listen = "udp://127.0.0.1:0"
handler = "handlers:UpperDatagram"
dispatcher = {{ use = "fork", max_children = 3 }}
lifecycle = "graceful:drain=60"
"""


def refused(where):
    with pytest.raises(ConnectionRefusedError):
        talk(where, b"")


def refuses(where):
    """Wait until nobody listens there any more: the last that a client can see of a stop that has begun."""
    while True:
        try:
            socket.create_connection(where, 5).close()
        except ConnectionError:
            return


def test_a_handler_is_served_on_every_listener_and_each_is_told_with_its_real_place(here, usual):
    command = [*SERVE, "handlers:both", "--listen", "tcp://127.0.0.1:0", "--listen", "udp://127.0.0.1:0", "--listen", f"unix://{here}/s"]
    with Program(*command) as program:
        tcp, udp, unix = program.serving(3)
        assert (tcp[:16], udp[:16], unix) == ("tcp://127.0.0.1:", "udp://127.0.0.1:", f"unix://{here}/s")
        assert talk(address(tcp), b"stream") == b"STREAM"
        assert ask(address(udp), b"datagram") == b"DATAGRAM"
        assert talk(address(unix), b"path") == b"PATH"
        assert program.stop(signal.SIGTERM) == 0
        assert program.output.splitlines() == [f"serving {url} ({usual}, graceful)" for url in (tcp, udp, unix)]
    assert not Path("s").exists()


def test_what_is_told_goes_to_standard_error_alone(here, usual):
    program = subprocess.Popen(
        [*SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with program:
        assert re.fullmatch(rf"serving tcp://127\.0\.0\.1:[1-9]\d* \({usual}, graceful\)\n", program.stderr.readline())
        program.terminate()
        assert program.communicate(timeout=GUARD) == ("", "")
        assert program.returncode == 0


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "fork", "fork:2", "fork:max_children=2"])
def test_one_word_changes_the_dispatcher(here, dispatcher):
    with Program(*SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0", "--dispatcher", dispatcher) as program:
        [url] = program.serving()
        program.line(rf"\({dispatcher.partition(':')[0]}, graceful\)")
        assert talk(address(url), b"a\nb\n") == b"A\nB\n"
        assert program.stop() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_classic_lifecycle_leaves_signals_to_the_system(here, number, code):
    with Program(*SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0", "--dispatcher", "thread", "--lifecycle", "classic") as program:
        program.line(r"\(thread, classic\)")
        assert program.stop(number) == code
        assert "Traceback" not in program.output


def test_a_file_serves_all_its_servers_in_one_process(here, usual):
    Path("all.toml").write_text(BOTH.format(here=here, stream="Upper"))
    with Program(*SERVE, "all.toml") as program:
        urls = program.serving(3)
        assert sorted(match[0] for match in program.line(r"\(.*\)", 3)) == sorted(["(fork, graceful)"] + 2 * [f"({usual}, graceful)"])
        tcp, unix, udp = (next(url for url in urls if url.startswith(scheme)) for scheme in ("tcp:", "unix:", "udp:"))
        assert talk(address(tcp), b"a\n") == b"A\n"
        assert talk(address(unix.replace(":////", ":///")), b"b\n") == b"B\n"
        assert ask(address(udp), b"c") == b"C"
        assert program.stop(signal.SIGINT) == 0
        warning = "this process forks while other threads run"  # those of the other servers
        assert [line for line in program.output.splitlines()[3:] if not line.startswith(warning)] == []
    refused(address(tcp))
    assert not Path("echo.sock").exists()


def test_a_file_serves_the_servers_that_are_named(here):
    Path("all.toml").write_text(BOTH.format(here=here, stream="Nowhere"))
    with Program(*SERVE, "all.toml", "dns") as program:
        [url] = program.serving()
        assert ask(address(url), b"c") == b"C"
        assert program.stop() == 0
        assert program.output == f"serving {url} (fork, graceful)\n"


@pytest.mark.parametrize("servers", [1, 2])
def test_a_signal_lets_running_requests_finish(here, servers):
    Path("told.toml").write_text(
        "".join(f'[servers.s{n}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:Told"\n' for n in range(servers))
    )
    with Program(*SERVE, "told.toml") as program, ExitStack() as stack:
        where = [address(url) for url in program.serving(servers)]
        clients = [stack.enter_context(socket.create_connection(each, GUARD)) for each in where]
        program.line("begun", servers)
        program.send_signal(signal.SIGTERM)
        for each, client in zip(where, clients, strict=True):
            refuses(each)
            client.sendall(b"late\n")
            assert client.recv(100) == b"LATE\n"
        assert program.wait(GUARD) == 0


@pytest.mark.parametrize("servers", [1, 2])
def test_a_second_signal_does_not_wait_for_them(here, servers):
    Path("told.toml").write_text(
        "".join(f'[servers.s{n}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:Told"\n' for n in range(servers))
    )
    with Program(*SERVE, "told.toml") as program, ExitStack() as stack:
        where = [address(url) for url in program.serving(servers)]
        clients = [stack.enter_context(socket.create_connection(each, GUARD)) for each in where]
        program.line("begun", servers)
        program.send_signal(signal.SIGTERM)
        for each in where:
            refuses(each)
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0  # the drain would have taken 30 s
        for client in clients:
            assert client.recv(100) == b""


@pytest.mark.parametrize("servers", [1, 2])
def test_a_third_signal_leaves_at_once(here, servers):
    Path("never.toml").write_text(
        "".join(f'[servers.s{n}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:never"\n' for n in range(servers))
    )
    with Program(*SERVE, "never.toml") as program, ExitStack() as stack:
        where = [address(url) for url in program.serving(servers)]
        for each in where:
            stack.enter_context(socket.create_connection(each, GUARD))
        program.line("begun", servers)
        program.send_signal(signal.SIGTERM)
        for each in where:
            refuses(each)
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGTERM)  # two different ones: two of the same kind may arrive as one
        assert program.wait(10) in {128 + signal.SIGTERM, 128 + signal.SIGINT}  # either may be handled first


def test_workers_that_cannot_start_are_a_failure_at_run_time(here):
    Path("stillborn.py").write_text(
        "import os\nos.register_at_fork(after_in_child=lambda: os._exit(3))\ndef handler(request, client_address, server): pass\n"
    )
    with Program(*SERVE, "stillborn:handler", "--listen", "tcp://127.0.0.1:0", "--dispatcher", "prefork:1,boots=1") as program:
        assert program.wait(20) == 1
        program.line(r"Error: a worker ended before it was ready: exit code 3; the log has its errors")


def test_a_handler_that_cannot_be_stopped_does_not_keep_the_process(here):
    with Program(*SERVE, "handlers:never", "--listen", "tcp://127.0.0.1:0", "--lifecycle", "graceful:drain=100ms") as program:
        [url] = program.serving()
        with socket.create_connection(address(url), GUARD) as client:
            program.line("begun")
            assert program.stop() == 1
            program.line(r"Error: abandoned requests that did not end in time: .*127\.0\.0\.1")
            assert client.recv(1) == b""


def test_all_are_bound_or_none(here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        Path("all.toml").write_text(
            BOTH.format(here=here, stream="Upper") + f'[servers.z]\nlisten = "tcp://127.0.0.1:{port}"\nhandler = "handlers:Upper"\n'
        )
        done = subprocess.run([*SERVE, "all.toml"], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: cannot listen on tcp://127.0.0.1:{port}: Address already in use")
    assert done.stderr.count("\n") == 1  # and nothing was served meanwhile
    assert not Path("echo.sock").exists()


def test_when_one_server_fails_the_others_are_stopped_too(here, install):
    install(
        "socketkit-frail",
        "frail",
        """
        import attrs
        from socketkit.hookspecs import hookimpl

        class Live:
            def drive(self, open_intake):
                with open_intake() as intake:
                    intake.take()
                raise RuntimeError("that was too much")

            def wait(self, timeout):
                return True

            def close(self):
                pass

        @attrs.frozen
        class Frail:
            def start(self, work):
                return Live()

        @hookimpl
        def socketkit_dispatchers():
            return {"frail": Frail}
        """,
    )
    frail = '[servers.frail]\nlisten = "udp://127.0.0.1:0"\nhandler = "handlers:UpperDatagram"\ndispatcher = "frail"\n'
    Path("all.toml").write_text(BOTH.format(here=here, stream="Upper") + frail)
    with Program(*SERVE, "all.toml") as program:
        program.serving(4)
        [match] = program.line(r"serving udp://127.0.0.1:(\d+) \(frail")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", int(match[1])))
        assert program.wait(GUARD) == 1
        program.line("that was too much")
    assert not Path("echo.sock").exists()


def test_plugins_observe_what_is_served(here, install):
    install(
        "socketkit-spy",
        "spy",
        """
        from socketkit.hookspecs import hookimpl

        class Spy:
            def request_accepted(self, server, request, client_address):
                print("accepted", flush=True)

        @hookimpl
        def socketkit_observers(server):
            return [Spy()]
        """,
    )
    with Program(*SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0") as program:
        [url] = program.serving()
        talk(address(url), b"a\n")
        program.line("accepted")
        assert program.stop() == 0


@pytest.mark.clients("redis-benchmark", "dig")
def test_redis_benchmark_and_dig_are_answered(here):
    Path("real.py").write_text("""
import socketserver

class Pong(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line.strip().upper() == b"PING":
                self.wfile.write(b"+PONG\\r\\n")
            elif line.strip() == b"CONFIG":  # which it asks for first
                self.wfile.write(b"-ERR there is none\\r\\n")

class Localhost(socketserver.DatagramRequestHandler):
    def handle(self):
        query = self.rfile.read()
        question = query[12 : query.index(0, 12) + 5]
        self.wfile.write(query[:2] + b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + question + b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x7f\\0\\0\\x2a")
""")
    Path("real.toml").write_text(
        '[servers.pong]\nlisten = "tcp://127.0.0.1:0"\nhandler = "real:Pong"\n[servers.dns]\nlisten = "udp://127.0.0.1:0"\nhandler = "real:Localhost"\n'
    )
    with Program(*SERVE, "real.toml") as program:
        urls = sorted(program.serving(2))
        (_, pong), (_, dns) = map(address, urls)
        pinged = subprocess.run(
            ["redis-benchmark", "-p", str(pong), "-t", "ping_inline", "-n", "500", "-c", "10", "--csv"],
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        )
        assert pinged.returncode == 0, pinged
        assert "PING_INLINE" in pinged.stdout
        dug = subprocess.run(
            ["dig", "@127.0.0.1", "-p", str(dns), "+short", "+noedns", "some.example"],
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        )
        assert dug.stdout == "127.0.0.42\n"
        assert program.stop() == 0


def test_limits_are_given_as_an_option(here):
    with Program(*SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0", "--limits", "deny=127.0.0.1,reply=no") as program:
        [url] = program.serving()
        with socket.create_connection(address(url), timeout=10) as client:
            assert client.recv(10) == b"no"
        assert program.stop() == 0


def test_check_tells_the_limits_that_a_server_was_given(here):
    source = '[servers.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:Upper"\nlimits = { max_connections = 7 }\n'
    (here / "a.toml").write_text(source)
    told = subprocess.run([*SERVE[:-1], "check", "a.toml"], capture_output=True, text=True, check=True).stdout
    assert told.rstrip().endswith("graceful), max_connections=7")
