"""The dispatcher in separate programs: signals, classic servers, idle servers, patched programs, and an installation as users do it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import Program, python, run, with_path

PLUGIN = Path(__file__).parents[1]

SERVE = """
import sys, threading
from socketkit import Classic, Graceful, Server, StreamRequestHandler
from socketkit_gevent import Gevent

class Greeting(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"hello\\n")
        self.wfile.write(self.rfile.readline())

class Tells:
    def server_started(self, server):
        print("serving", *server.urls, flush=True)
    def server_stopping(self, server):
        print("stopping", flush=True)

def serve(**options):
    server = Server("tcp://127.0.0.1:0", Greeting, observers=[Tells()], **options)
    try:
        server.serve_forever()
    finally:
        print("ended", server.stop(), flush=True)
"""


def program(source):
    return Program.python("-c", SERVE + source)


def place(running):
    return address(running.line(r"^serving (\S+)")[0][1])


def effort(pid):
    """Return the process's state, the context switches of its threads, and their processor time."""
    switches = [
        line.split()[1]
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if "ctxt" in line
    ]
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return state, switches, fields[10:12]


def let_rest(pid):
    """Wait until the process is idle."""
    before = None
    while before != (before := effort(pid)) or before[0] != "S":
        time.sleep(0.05)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_an_idle_server_at_once(number):
    with program("serve(dispatcher=Gevent())") as running:
        assert talk(place(running), b"x\n") == b"hello\nx\n"  # the loop is running
        begun = time.monotonic()
        assert running.stop(number) == 0
        assert time.monotonic() - begun < 2
        assert "0 forced, 0 stuck" in running.output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_signal_that_another_thread_receives_wakes_the_hub_too():
    source = """
import os, pathlib, signal, time
idle = threading.Event()
other = threading.Thread(target=idle.wait)
other.start()

def kick():
    status = pathlib.Path(f"/proc/self/task/{os.getpid()}/status")  # of the main thread
    before = None
    while before != (before := status.read_text()) or "(sleeping)" not in before:
        time.sleep(0.2)
    signal.pthread_kill(other.ident, signal.SIGTERM)

class Kicks(Tells):
    def server_started(self, server):
        threading.Thread(target=kick).start()
Tells = Kicks
serve(dispatcher=Gevent())
idle.set()
"""
    python(SERVE + source, guard=10)


def test_a_signal_drains_and_a_second_one_forces():
    with program("serve(dispatcher=Gevent(), lifecycle=Graceful(drain=None))") as running:
        with (
            socket.create_connection(place(running), timeout=10) as finishes,
            socket.create_connection(place(running), timeout=10) as stays,
        ):
            assert (finishes.recv(100), stays.recv(100)) == (b"hello\n", b"hello\n")
            running.send_signal(signal.SIGTERM)
            running.line("^stopping")
            finishes.sendall(b"bye\n")
            assert finishes.recv(100) == b"bye\n"
            assert finishes.recv(100) == b""
            assert running.stop() == 0
            assert stays.recv(100) == b""
        assert re.search(r"ended \d finished, \d forced, 0 stuck", running.output)


@pytest.mark.parametrize("busy", [False, True])
def test_an_unhandled_control_c_ends_the_program(busy):
    with program("serve(dispatcher=Gevent(), lifecycle=Classic())") as running:
        with socket.create_connection(place(running), timeout=10) as client:
            assert client.recv(100) == b"hello\n"
            if not busy:
                client.sendall(b"x\n")
                assert client.recv(100) == b"x\n"
                assert client.recv(100) == b""
                let_rest(running.pid)  # Python ignores a Ctrl-C that arrives while an object is being cleaned up
            assert running.stop(signal.SIGINT) == -signal.SIGINT
        assert "KeyboardInterrupt" in running.output


def test_the_programs_own_wake_up_descriptor_comes_back():
    source = """
import signal, socket
reader, writer = socket.socketpair()
writer.setblocking(False)
signal.set_wakeup_fd(writer.fileno())
serve(dispatcher=Gevent())
assert signal.set_wakeup_fd(-1) == writer.fileno()
"""
    with program(source) as running:
        assert talk(place(running), b"x\n") == b"hello\nx\n"  # the loop is running
        assert running.stop() == 0


# --- idleness --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("bound", [2, 100])
def test_a_server_with_nothing_to_do_sleeps_also_when_it_is_full(bound):
    with program(f"serve(dispatcher=Gevent({bound}))") as running:
        where = place(running)
        everyone = [socket.create_connection(where, timeout=10) for _ in range(4)]
        for client in everyone[: min(bound, 4)]:
            assert client.recv(100) == b"hello\n"
        settled, before = time.monotonic() + 5, None
        while before != (before := effort(running.pid)):  # wait for work left over from the last greeting
            assert time.monotonic() < settled
            time.sleep(0.1)
        time.sleep(1)
        assert effort(running.pid) == before
        for client in everyone:
            client.close()
        assert running.stop() == 0


# --- classic servers -------------------------------------------------------------------------------------------------

CLASSIC = """
import http.server, os, socketserver, sys, threading
http.server.HTTPServer.request_queue_size = 128  # all clients come at once
before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None

class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"%d threads" % threading.active_count()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/stop":
            self.close_connection = True
            self.server.shutdown()
    def log_message(self, *args):
        pass
"""


@pytest.fixture
def classic(tmp_path):
    """Return a function that makes a program of classic servers, which has to be started, and runs under this dispatcher."""

    def make(source, *arguments, options=(), **more):
        script = tmp_path / "classic.py"
        script.write_text(source)
        return Program.python("-m", "socketkit", "run", "--dispatcher", "gevent", *options, str(script), *arguments, **more)

    return make


def ends_well(program):
    """Run a program to its end; return whether it had nothing to complain about."""
    with program as running:
        assert running.wait() == 0, running.output
        return running.output == ""


GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


def test_an_unmodified_threading_http_server_runs_on_greenlets(classic):
    source = """
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
print("serving tcp://127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
server.server_close()
if before is not None:
    assert sorted(os.listdir("/proc/self/fd")) == before
print("ended with", threading.active_count(), flush=True)
"""
    with classic(CLASSIC + source) as running:
        where = place(running)
        everyone = [socket.create_connection(where, timeout=10) for _ in range(50)]
        for _ in range(2):  # all stay connected, each between two of its requests
            for client in everyone:
                client.sendall(GET % b"")
                assert b"1 threads" in _answer(client)
        everyone[0].sendall(GET % b"stop")
        assert b"1 threads" in _answer(everyone[0])
        assert running.wait(10) == 0
        assert running.output.splitlines()[1:] == ["ended with 1"]  # no output about the clients that were still connected
        for client in everyone:
            client.close()


def test_closing_a_classic_server_that_does_not_wait_kills_what_nobody_will_run_again(classic):
    source = """
import gevent.event

class Waits(Pages):
    def do_GET(self):
        super().do_GET()
        if self.path == "/wait":
            try:
                gevent.event.Event().wait()
            finally:
                print("cleaned up", flush=True)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Waits)
print("serving tcp://127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
server.server_close()
print("closed", flush=True)
"""
    with classic(CLASSIC + source) as running:
        with socket.create_connection(place(running), timeout=10) as waits, socket.create_connection(place(running), timeout=10) as stops:
            waits.sendall(GET % b"wait")
            _answer(waits)
            stops.sendall(GET % b"stop")
            _answer(stops)
            assert running.wait(10) == 0
        running.line("^cleaned up")
        running.line("^closed")
        assert running.output.index("cleaned up") < running.output.index("closed")


def test_a_classic_server_in_a_thread_can_be_closed_from_another_one(classic):
    source = """
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
server.daemon_threads = False
thread = threading.Thread(target=server.serve_forever)
thread.start()
import socket
with socket.create_connection(server.server_address) as left, socket.create_connection(server.server_address) as client:
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert b"200 OK" in client.recv(1000)
    server.shutdown()
    server.server_close()
    for each in (left, client):
        each.settimeout(10)
        while each.recv(1000):
            pass  # the rest of the answer, then the end
    thread.join()
"""
    assert ends_well(classic(CLASSIC + source))


def test_a_classic_datagram_server_answers_and_its_socket_blocks_again_afterwards(classic):
    source = """
import socket
class Upper(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())
        if self.packet == b"stop":
            self.server.shutdown()
server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Upper)
thread = threading.Thread(target=server.serve_forever)
thread.start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(10)
    client.connect(server.server_address)
    for word in (b"one", b"two", b"stop"):
        client.send(word)
        assert client.recv(100) == word.upper()
thread.join()
assert os.get_blocking(server.fileno())
server.server_close()
if before is not None:
    assert sorted(os.listdir("/proc/self/fd")) == before
"""
    assert ends_well(classic(CLASSIC + source))


OWN_THREADS = """
import queue, socket, socketserver, sys, threading

class Echo(socketserver.StreamRequestHandler):
    timeout = 10
    def handle(self):
        self.wfile.write(b"hello\\n")
        for line in self.rfile:  # waits
            self.wfile.write(line)
        self.wfile.write(bytes(MUCH))  # waits

class Own:
    def process_request_thread(self, request, client_address):
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)

class Thread(Own):
    def process_request(self, *request):
        threading.Thread(target=self.process_request_thread, args=request, daemon=True).start()

class Queue(Own):
    def server_activate(self):
        super().server_activate()
        self.queue = queue.SimpleQueue()
        for _ in range(3):
            threading.Thread(target=self.work, daemon=True).start()
    def process_request(self, *request):
        self.queue.put(request)
    def work(self):
        while True:
            self.process_request_thread(*self.queue.get())

MUCH = 10 << 20
kind = {"thread": Thread, "queue": Queue}[sys.argv[1]]
server = type("Server", (kind, socketserver.TCPServer), {})(("127.0.0.1", 0), Echo)
serving = threading.Thread(target=server.serve_forever)
serving.start()
for turn in range(3):
    clients = [socket.create_connection(server.server_address, timeout=10) for _ in range(3)]
    for client in clients:
        assert client.recv(6) == b"hello\\n"
    for client in clients:
        for line in (b"one\\n", b"two\\n"):
            client.sendall(line)
            assert client.recv(4) == line
    if turn == 2:  # the last ones go on after the loop
        server.shutdown()
        serving.join()
    for client in clients:
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == bytes(MUCH)
server.server_close()
"""


@pytest.mark.parametrize("own", ["thread", "queue"])
@pytest.mark.parametrize("served", ["python", "gevent"])
def test_a_server_may_hand_its_requests_to_threads_of_its_own(classic, served, own):
    if served == "python":
        assert python(OWN_THREADS, own).stderr == ""
    else:
        assert ends_well(classic(OWN_THREADS, own))


def test_a_thread_of_the_servers_own_may_use_every_call_and_its_timeout(classic):
    source = """
import socket

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        request = self.request
        if isinstance(request, tuple):
            request[1].sendto(request[0].upper(), self.client_address)
            return
        request.sendall(b"hello")
        buffer = bytearray(4)
        assert request.recvfrom(4)[0] == b"one\\n"
        request.sendmsg([b"next"])
        assert request.recvmsg(4)[0] == b"two\\n"
        request.settimeout(0.05)
        try:
            request.recv_into(buffer)
        except TimeoutError:
            request.sendall(b"late")
        request.settimeout(0)
        try:
            request.recv_into(buffer)
        except BlockingIOError:
            request.sendall(b"none")

class Own:
    def process_request(self, request, client_address):
        def run():
            self.finish_request(request, client_address)
            self.shutdown_request(request)
        threading.Thread(target=run).start()

class Stream(Own, socketserver.TCPServer):
    pass
class Datagram(Own, socketserver.UDPServer):
    pass
for kind, type in ((Stream, socket.SOCK_STREAM), (Datagram, socket.SOCK_DGRAM)):
    server = kind(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    with socket.socket(socket.AF_INET, type) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        if kind is Datagram:
            client.send(b"x")
            assert client.recv(4) == b"X"
        else:
            assert client.recv(5) == b"hello"
            client.sendall(b"one\\n")
            assert client.recv(4) == b"next"
            client.sendall(b"two\\n")
            assert client.makefile("rb").read() == b"latenone"
    server.shutdown()
    server.server_close()
"""
    assert ends_well(classic(CLASSIC + source))


def _answer(client):
    received = b""
    while b"threads" not in received:
        chunk = client.recv(1000)
        assert chunk, received
        received += chunk
    return received


# --- the end of a program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "composed"])
def test_a_program_ends_although_a_daemon_thread_serves(classic, kind):
    source = """
class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

if sys.argv[1] == "classic":
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upper)
    server.daemon_threads = True
    where = server.server_address
else:
    from socketkit import Server
    server = Server("tcp://127.0.0.1:0", Upper, dispatcher="gevent")
    server.__enter__()
    where = server.addresses[0]
threading.Thread(target=server.serve_forever, daemon=True).start()
print("serving tcp://%s:%d" % where, flush=True)
sys.stdin.read()
"""
    for _ in range(5):  # without care it crashes in most runs, not in all
        reader, writer = os.pipe()
        with classic(CLASSIC + source, kind, stdin=reader) as running:
            os.close(reader)
            where = place(running)
            with socket.create_connection(where, timeout=10) as waits:
                waits.sendall(b"x\n")
                assert waits.recv(100) == b"X\n"
                os.close(writer)  # now it ends
                with contextlib.suppress(OSError):
                    while True:  # wake the loop all the time
                        socket.create_connection(where, timeout=0.1).close()
                assert running.wait(10) == 0


def test_a_program_ends_although_requests_go_on_without_a_run():
    source = """
import socket
server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(), lifecycle=Classic()).start()
client = socket.create_connection(server.addresses[0])
assert client.recv(100) == b"hello\\n"
server.stop()
"""
    python(SERVE + source)


# --- programs that use gevent ----------------------------------------------------------------------------------------


def test_a_program_that_uses_gevent_goes_on_beside_the_server():
    source = """
import gevent, socket
from gevent.event import Event
here, back = Event(), Event()

class Meets(StreamRequestHandler):
    def handle(self):
        here.set()  # gevent's primitives work between handlers and the program: they share a hub
        back.wait()
        self.wfile.write(b"met")

server = Server("tcp://127.0.0.1:0", Meets, dispatcher=Gevent())
with server:
    serving = gevent.spawn(server.serve_forever)
    def client():
        with gevent.socket.create_connection(server.addresses[0]) as connection:
            return connection.recv(100)
    talking = gevent.spawn(client)
    here.wait()
    back.set()
    assert talking.get() == b"met"
    hub = gevent.get_hub()
    server.stop(wait=False)
    serving.get()
    assert server.state.value == "stopped"
    assert gevent.get_hub() is hub and hub.loop is not None
    gevent.sleep(0)
"""
    python(SERVE + source)


def test_a_timeout_of_the_programs_own_ends_serving():
    source = """
import gevent
try:
    with gevent.Timeout(0.05):
        serve(dispatcher=Gevent())
except gevent.Timeout:
    print("timed out")
"""
    assert "timed out" in python(SERVE + source).stdout


PATCHED = """
import gevent.monkey
gevent.monkey.patch_all(select=False)
import socketserver, sys
from socketkit import DatagramRequestHandler, Graceful, Server, StreamRequestHandler
from socketkit_gevent import Gevent

class Stream(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Datagram(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

where = sys.argv[1]
if where == "classic stream":
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stream)
elif where == "classic datagram":
    server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Datagram)
else:
    server = Server(where, Stream if where.startswith("tcp") else Datagram, dispatcher=Gevent(), lifecycle=Graceful(drain=5))
with server:
    address = server.addresses[0] if isinstance(server, Server) else server.server_address
    print("serving tcp://127.0.0.1:%d" % address[1], flush=True)
    server.serve_forever()
"""


@pytest.mark.parametrize("where", ["classic stream", "classic datagram", "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "udp://*:0"])
def test_a_patched_program_serves_and_stops_at_a_signal(classic, where):
    with classic(PATCHED, where, options=("--lifecycle", "graceful:drain=5")) as running:
        for _ in range(3):
            assert (ask if "dp" in where or "datagram" in where else talk)(place(running), b"text\n") == b"TEXT\n"
        assert running.stop() == 0


def test_a_process_whose_select_is_patched_is_refused_with_the_remedy():
    source = "import gevent.monkey\ngevent.monkey.patch_all()\n"
    remedy = """
from socketkit.errors import IncompatibleError
try:
    serve(dispatcher=Gevent())
except IncompatibleError as error:
    print(error)
"""
    assert "patch with gevent.monkey.patch_all(select=False)" in python(source + SERVE + remedy).stdout


def test_the_remedy_works():
    source = "import gevent.monkey\ngevent.monkey.patch_all(select=False)\n"
    with Program.python("-c", source + SERVE + "serve(dispatcher=Gevent())") as running:
        where = place(running)
        with socket.create_connection(where, timeout=10) as first, socket.create_connection(where, timeout=10) as second:
            assert (first.recv(100), second.recv(100)) == (b"hello\n", b"hello\n")
            second.sendall(b"x\n")
            assert second.recv(100) == b"x\n"
        assert running.stop() == 0


def test_a_handler_that_will_not_end_is_reported_and_does_not_hold_up_the_stop():
    source = """
import contextlib, gevent, gevent.event, socket

class Stubborn(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"hello")
        while True:
            with contextlib.suppress(gevent.GreenletExit):
                gevent.event.Event().wait()

server = Server("tcp://127.0.0.1:0", Stubborn, dispatcher=Gevent()).start()
with socket.create_connection(server.addresses[0]) as client:
    assert client.recv(100) == b"hello"
    assert len(server.stop(drain=0).stuck) == 1
"""
    begun = time.monotonic()
    python(SERVE + source)
    assert time.monotonic() - begun < 20


# --- installed -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the environment of a program with the plugin's wheel installed instead of its sources."""
    pytest.importorskip("hatchling", reason="builds the wheel")
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(PLUGIN), guard=120)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), guard=120)
    return with_path(folder / "site")


def test_an_installed_plugin_is_used_by_its_name(installed):
    source = """
import socketkit_gevent
assert "site" in socketkit_gevent.__file__, socketkit_gevent.__file__
import os, socket
from socketkit import Server, StreamRequestHandler

class Upper(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

assert os.path.exists(os.path.join(os.path.dirname(socketkit_gevent.__file__), "py.typed"))
for name in ("gevent", "gevent:5", "gevent:none"):
    server = Server("tcp://127.0.0.1:0", Upper, dispatcher=name).start()
    with socket.create_connection(server.addresses[0]) as client:
        client.sendall(b"x\\n")
        assert client.recv(100) == b"X\\n"
    server.stop()
    print(server.dispatcher)
print(server.explain())
"""
    output = python(source, env=installed).stdout
    assert output.splitlines()[:3] == ["Gevent(max_greenlets=10000)", "Gevent(max_greenlets=5)", "Gevent(max_greenlets=None)"]
    assert re.search(rf"dispatcher: Gevent, from socketkit[-_]gevent {re.escape(version('socketkit-gevent'))}", output)


def test_a_bad_option_is_refused_where_it_was_written(installed):
    source = """
from socketkit import Server
try:
    Server("tcp://127.0.0.1:0", print, dispatcher="gevent:0")
except ValueError as error:
    print(error)
"""
    assert re.match("max_greenlets:? must be a whole number of at least 1", python(source, env=installed).stdout)


def test_the_command_line_lists_the_plugin(installed):
    listed = run(sys.executable, "-m", "socketkit", "plugins", env=installed).stdout
    assert "gevent" in listed
    assert "socketkit-gevent" in listed
