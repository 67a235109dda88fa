"""Every way to stop ends every program under every dispatcher, as soon as plain Python does, or at the limit that was given.

A way is a signal to the program or to its process group. A client says nothing, says nothing in a TLS handshake inside `accept`, or
reads a stream that never ends.
"""

import itertools
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import attrs
import pytest

from socketkit.testing.programs import Program

DISPATCHERS = ("sync", "thread", "fork", "pool:4", "adaptive", "executor", "asyncio", "prefork:2")

SERVER = """
import http.server, socketserver, ssl, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def setup(self):
        super().setup()
        print("begun", flush=True)

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"tick")
            print("written", flush=True)
            time.sleep(0.02)

class Threading(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = sys.argv[1] == "daemon"

class SpeaksTLS:
    def get_request(self):
        sock, address = super().get_request()
        print("accepting", flush=True)
        sock.do_handshake()
        return sock, address

base = http.server.HTTPServer if sys.argv[1] == "single" else Threading
kind = type("Kind", (SpeaksTLS, base), {}) if sys.argv[2:] else base
with kind(("127.0.0.1", 0), Handler) as server:
    if sys.argv[2:]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("port", server.server_port, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("left", flush=True)
"""

PLAIN = "plain"
AT_ONCE = 20  # seconds, on a machine that is busy with other tests


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost -batch".split()
    subprocess.run(["openssl", *made, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True)
    with file.open("a") as both:
        both.write(Path(f"{file}.crt").read_text())
    return str(file)


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("program") / "server.py"
    file.write_text(SERVER)
    return str(file)


def program(dispatcher, *words, lifecycle=()):
    return Program.python(*words if dispatcher == PLAIN else ("-m", "socketkit", "run", "--dispatcher", dispatcher, *lifecycle, *words))


def client(running, talk=b""):
    port = int(running.line(r"^port (\d+)")[0][1])
    sock = socket.create_connection(("127.0.0.1", port), timeout=AT_ONCE)
    sock.sendall(talk)
    return sock


@attrs.frozen
class Way:
    """How a program is run, and how it is told to stop."""

    dispatcher: str
    kind: str  # of server: single-threaded, or with daemon threads
    number: signal.Signals
    group: bool  # whether the signal goes to the whole process group

    def program(self, script, *words):
        lifecycle = ("--lifecycle", "graceful:drain=1s") if self.number == signal.SIGTERM else ()
        return program(self.dispatcher, script, self.kind, *words, lifecycle=lifecycle)

    def stops(self, running):
        if self.group:
            os.killpg(running.pid, self.number)
        else:
            running.send_signal(self.number)
        assert running.wait(AT_ONCE) == 0, running.output
        assert "left" in running.output


def ways():
    """Yield all ways; of plain Python, which has to pass, too, only those that it has."""
    for dispatcher in (PLAIN, *DISPATCHERS):
        for number in (signal.SIGINT, signal.SIGTERM) if dispatcher != PLAIN else (signal.SIGINT,):
            for kind, group in itertools.product(("single", "daemon"), (False, True)):
                yield pytest.param(
                    Way(dispatcher, kind, number, group), id=f"{dispatcher}-{kind}-{number.name}-{'group' if group else 'one'}"
                )


def rest(running):
    """Wait until every thread of the program sleeps: Python looks at no signal that comes just before a thread begins to wait."""
    while any(state.read_text().rpartition(")")[2].split()[0] != "S" for state in Path(f"/proc/{running.pid}/task").glob("*/stat")):
        time.sleep(0.001)


every_way = pytest.mark.parametrize("way", list(ways()))


@every_way
def test_a_client_that_says_nothing_keeps_no_program_from_ending(script, way):
    with way.program(script) as running, client(running):
        running.line("^begun")
        way.stops(running)


@every_way
def test_a_stream_that_never_ends_keeps_no_program_from_ending(script, way):
    with way.program(script) as running, client(running, b"GET / HTTP/1.0\r\n\r\n"):
        running.line("^written", 3)
        way.stops(running)


@every_way
def test_a_handshake_inside_accept_keeps_no_program_from_ending(script, certificate, way):
    with way.program(script, certificate) as running, client(running), client(running):
        running.line("^accepting")
        rest(running)
        way.stops(running)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)  # plain Python may need a third, because the interpreter joins threads once more
def test_a_second_ctrl_c_ends_a_program_that_waits_for_its_requests_and_says_so(script, dispatcher):
    with program(dispatcher, script, "waits") as running, client(running, b"GET / HTTP/1.0\r\n\r\n"):
        running.line("^written", 3)
        running.send_signal(signal.SIGINT)
        running.line("^interrupted")
        if dispatcher != "sync":
            running.line("waiting for 1 running requests to end; press Ctrl-C again")
        running.send_signal(signal.SIGINT)
        running.wait(AT_ONCE)
