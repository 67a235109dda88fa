"""Each row of docs/reference/differences.md, on both sides: what the standard library does, and what we do instead."""

import errno
import importlib
import inspect
import logging
import os
import re
import selectors
import socket
import sys
import threading
from pathlib import Path

import pytest

import socketkit.socketserver
from compat.classic import LOCAL, NEW, OLD, WAIT, asleep, connection, looping, program, serving, talk
from helpers.support import ROOT
from socketkit.errors import AlreadyServingError
from socketkit.testing.programs import run, with_path

PAGE = ROOT / "docs" / "reference" / "differences.md"

old, new = importlib.import_module(OLD), socketkit.socketserver

MOMENT = 0.3
"""Seconds after which we take it that something does not happen."""


class OnPurposeError(Exception):
    """Raised by hooks under test."""


def upper(library):
    class Upper(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    return Upper


def both(source, *arguments, **options):
    """Return what the program prints with the standard library, and with ours.

    In it `OURS` is how long to wait for what only ours does, and `THEIRS` the same for the standard library.
    """
    patience = {OLD: f"OURS, THEIRS = {MOMENT}, {WAIT}\n", NEW: f"OURS, THEIRS = {WAIT}, {MOMENT}\n"}
    return tuple(program(patience[library] + source, *arguments, library=library, **options).strip() for library in (OLD, NEW))


# --- the page -------------------------------------------------------------------------------------------------------------


def rows():
    """Return the rows of the page's tables, without their heads."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith(("| what |", "|---"))]


def test_every_row_of_the_page_says_all_four_things_and_names_its_test():
    assert len(rows()) >= 20
    for row in rows():
        assert len(row) == 5
        assert all(row)
        assert re.fullmatch(r"`test_\w+`", row[4]), row
        assert row[4].strip("`") in globals(), row


def test_every_test_below_stands_in_the_page():
    ours = {name for name in globals() if name.startswith("test_")} - {"test_every_row_of_the_page_says_all_four_things_and_names_its_test"}
    assert ours - {"test_every_test_below_stands_in_the_page"} == {row[4].strip("`") for row in rows()}


# --- stopping -------------------------------------------------------------------------------------------------------------


def test_shutdown_before_serving():
    source = """
import socketserver, threading
server = socketserver.TCPServer(("127.0.0.1", 0), None)
stop = threading.Thread(target=server.shutdown, daemon=True)
stop.start()
stop.join(OURS)
print("waits" if stop.is_alive() else "returns")
server.serve_forever()
print("and the loop ends at once")
"""
    ends = "\nand the loop ends at once"
    assert both(source) == ("waits" + ends, "returns" + ends)


@pytest.mark.parametrize("where", ["handler", "service_actions", "signal handler"])
def test_shutdown_in_the_serving_thread(where):
    source = """
import os, signal, socketserver, threading
from compat.classic import talk

where = sys.argv[1]
called, ended = threading.Event(), threading.Event()

def stop():
    called.set()
    server.shutdown()

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        stop() if where == "handler" else signal.raise_signal(signal.SIGTERM)

class Server(socketserver.TCPServer):
    def service_actions(self):
        if where == "service_actions":
            stop()

def watch():
    called.wait()
    print("ends" if ended.wait(OURS) else "waits for itself", flush=True)
    os._exit(0)

server = Server(("127.0.0.1", 0), Handler)
signal.signal(signal.SIGTERM, lambda *_: stop())
threading.Thread(target=watch).start()
threading.Thread(target=talk, args=(server, b""), daemon=True).start()
server.serve_forever(0.02)
ended.set()
"""
    assert both(source, where) == ("waits for itself", "ends")


@pytest.mark.parametrize(("library", "at_once"), [(old, False), (new, True)], ids=["stdlib", "socketkit"])
def test_shutdown_and_the_poll_interval(library, at_once):
    with library.TCPServer(LOCAL, upper(library)) as server:
        loop = threading.Thread(target=server.serve_forever, args=(60,))
        loop.start()
        assert talk(server, b"x\n") == b"X\n"
        assert asleep(loop)
        stop = threading.Thread(target=server.shutdown)
        stop.start()
        stop.join(WAIT if at_once else MOMENT)
        assert stop.is_alive() is not at_once
        with connection(server):  # which wakes the other
            stop.join(WAIT)
        loop.join(WAIT)


@pytest.mark.parametrize(("library", "ends"), [(old, False), (new, True)], ids=["stdlib", "socketkit"])
def test_server_close_while_serving(library, ends):
    class Server(library.TCPServer):
        attempts = 0

        def get_request(self):
            self.attempts += 1
            return super().get_request()

    server = Server(LOCAL, upper(library))
    loop = threading.Thread(target=server.serve_forever, args=(0.01,))
    loop.start()
    assert talk(server, b"x\n") == b"X\n"
    server.server_close()
    loop.join(WAIT if ends else MOMENT)
    assert loop.is_alive() is not ends
    assert server.attempts <= 2 if ends else server.attempts > 100
    server.shutdown()
    loop.join(WAIT)


def test_serving_twice_at_once():
    with old.TCPServer(LOCAL, None) as server:
        loops = [threading.Thread(target=server.serve_forever, args=(0.01,)) for _ in range(2)]
        for loop in loops:
            loop.start()
        shutdowns = 0
        while any(loop.is_alive() for loop in loops):  # one ends, and takes the other's request to stop away
            server.shutdown()
            shutdowns += 1
            for loop in loops:
                loop.join(0.05)
        assert shutdowns <= 100
    with new.TCPServer(LOCAL, upper(new)) as server, looping(server):
        assert talk(server, b"x\n") == b"X\n"
        with pytest.raises(AlreadyServingError):
            server.serve_forever()
        assert talk(server, b"x\n") == b"X\n"


@pytest.mark.parametrize(("library", "wakes"), [(old, True), (new, False)], ids=["stdlib", "socketkit"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts a thread's context switches, in /proc")
def test_an_idle_loop(library, wakes):
    def switches():
        status = Path(f"/proc/self/task/{loop.native_id}/status").read_text("ascii")
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])

    server = library.TCPServer(LOCAL, upper(library))
    with serving(server, 0.01) as loop:
        assert talk(server, b"x\n") == b"X\n"
        assert asleep(loop)
        before = switches()
        threading.Event().wait(MOMENT)
        assert (switches() - before > 5) is wakes


def test_a_replaced_selector(monkeypatch):
    registered = []

    class Recording(selectors.PollSelector):
        def register(self, fileobj, events, data=None):
            registered[-1].append(fileobj)
            return super().register(fileobj, events, data)

    for library in (old, new):
        registered.append([])
        monkeypatch.setattr(library, "_ServerSelector", Recording)
        server = library.TCPServer(LOCAL, upper(library))
        with serving(server):
            assert talk(server, b"x\n") == b"X\n"
    assert list(map(len, registered)) == [1, 2]


# --- taking requests ------------------------------------------------------------------------------------------------------


OUT_OF_DESCRIPTORS = f"""
import os, resource, socket, socketserver, threading, time
from compat.classic import looping, talk

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Server(socketserver.TCPServer):
    attempts = 0

    def get_request(self):
        self.attempts += 1
        if self.attempts == 3:
            failed_twice.set()
        return super().get_request()

    def close_request(self, request):
        super().close_request(request)
        closed.set()

failed_twice, closed = threading.Event(), threading.Event()
server = Server(("127.0.0.1", 0), Upper)
with server, looping(server):
    assert talk(server, b"x\\n") == b"X\\n"
    assert closed.wait(10)
    client = socket.socket()
    client.settimeout(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    client.connect(server.server_address)
    assert failed_twice.wait(10)
    attempts, used = server.attempts, time.process_time()
    threading.Event().wait({MOMENT})
    more, used = server.attempts - attempts, time.process_time() - used
    print("rests" if more <= 5 and used < {MOMENT} / 3 else "spins" if more > 100 else f"{{more}} attempts, {{used}} s")
    for descriptor in held:
        os.close(descriptor)
    client.sendall(b"served\\n")
    print(client.recv(100))
"""


def test_out_of_descriptors():
    served = "\nb'SERVED\\n'"
    assert both(OUT_OF_DESCRIPTORS) == ("spins" + served, "rests" + served)


LISTENER_WITH_TLS = """
import socket, socketserver, ssl, threading
import subprocess, tempfile
folder = tempfile.mkdtemp()
made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -batch -subj /CN=localhost"
subprocess.run([*made.split(), "-keyout", f"{folder}/key", "-out", f"{folder}/cert"], check=True, capture_output=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/cert", f"{folder}/key")

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upper)
server.daemon_threads = True
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
silent = socket.create_connection(server.server_address)
trusting = ssl.create_default_context(cafile=f"{folder}/cert")
second = socket.create_connection(server.server_address, OURS)
try:
    with trusting.wrap_socket(second, server_hostname="localhost") as client:
        client.sendall(b"served\\n")
        print(client.recv(100))
except TimeoutError:
    print("waits")
"""


def test_a_listener_with_tls():
    assert both(LISTENER_WITH_TLS) == ("waits", "b'SERVED\\n'")


def test_errors_in_taking_requests(caplog):
    class Failing:
        failures = 3

        def get_request(self):
            if self.failures:
                self.failures -= 1
                super().get_request()[0].close()
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return super().get_request()

    def replies(library):
        server = type("Server", (Failing, library.TCPServer), {})(LOCAL, library.BaseRequestHandler)
        with serving(server):
            return [talk(server, b"") for _ in range(4)]

    with caplog.at_level(logging.WARNING, "socketkit"):
        assert replies(old) == [b""] * 4
        assert caplog.messages == []
        assert replies(new) == [b""] * 4
    assert "Cannot allocate memory" in caplog.messages[0]
    assert [message.partition(" more like this")[0] for message in caplog.messages[1:]] == ["2"]


class Unverified:
    """Mixed in: raises in `verify_request`, and notes what happens then."""

    def verify_request(self, request, client_address):
        raise OnPurposeError

    def handle_error(self, request, client_address):
        self.told = sys.exc_info()[0]

    def close_request(self, request):
        super().close_request(request)
        self.closed = True


def test_an_error_in_verify_request():
    with type("Server", (Unverified, old.TCPServer), {})(LOCAL, None) as server, connection(server):
        request, address = server.get_request()
        server.get_request = lambda: (request, address)
        with request, pytest.raises(OnPurposeError):
            server._handle_request_noblock()
        assert "closed" not in vars(server)
    with type("Server", (Unverified, new.TCPServer), {})(LOCAL, None) as server, connection(server) as client:
        server.handle_request()
        assert (server.told, server.closed, client.recv(1)) == (OnPurposeError, True, b"")


@pytest.mark.parametrize(("library", "closed"), [(old, False), (new, True)], ids=["stdlib", "socketkit"])
def test_an_error_in_handle_error(library, closed):
    class Server(library.TCPServer):
        def handle_error(self, request, client_address):
            raise OnPurposeError

    def handler(request, client_address, server):
        server.request = request
        raise ZeroDivisionError

    with Server(LOCAL, handler) as server, connection(server):
        with pytest.raises(OnPurposeError):
            server.handle_request()
        with server.request:
            assert (server.request.fileno() == -1) is closed


BROKEN_STDERR = """
import os, socketserver, threading
from compat.classic import talk

class Fail(socketserver.BaseRequestHandler):
    def handle(self):
        raise ZeroDivisionError

def serve():
    try:
        server.serve_forever(0.02)
    except BaseException as error:
        print(type(error).__name__)

reader, writer = os.pipe()
os.close(reader)
sys.stderr = os.fdopen(writer, "w", buffering=1)
if sys.argv[1] == "closed":
    try:
        sys.stderr.close()
    except OSError:
        pass
with socketserver.TCPServer(("127.0.0.1", 0), Fail) as server:
    loop = threading.Thread(target=serve)
    loop.start()
    talk(server, b"")
    loop.join(THEIRS)
    if loop.is_alive():
        print("goes on")
        server.shutdown()
sys.stdout.flush()
os._exit(0)
"""


def test_a_broken_standard_error():
    assert both(BROKEN_STDERR, "broken") == ("BrokenPipeError", "goes on")
    assert both(BROKEN_STDERR, "closed") == ("ValueError", "goes on")


# --- threads --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "closes"), [(old, False), (new, True)], ids=["stdlib", "socketkit"])
def test_closing_after_a_thread_could_not_be_started(library, closes, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    class Server(library.ThreadingTCPServer):
        def handle_error(self, request, client_address):
            self.told = sys.exc_info()[0]

    server = Server(LOCAL, upper(library))
    with connection(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            server.handle_request()
        assert server.told is RuntimeError
        assert client.recv(1) == b""
    if closes:
        server.server_close()
    else:
        with pytest.raises(RuntimeError, match="cannot join thread before it is started"):
            server.server_close()


@pytest.mark.parametrize(("library", "error"), [(old, RuntimeError), (new, None)], ids=["stdlib", "socketkit"])
def test_server_close_in_a_handlers_thread(library, error):
    raised = []

    class Close(library.BaseRequestHandler):
        def handle(self):
            listed.wait(WAIT)
            try:
                self.server.server_close()
            except RuntimeError:
                raised.append(RuntimeError)
            else:
                raised.append(None)

    listed = threading.Event()
    with library.ThreadingTCPServer(LOCAL, Close) as server, connection(server) as client:
        server.handle_request()
        listed.set()
        assert client.recv(1) == b""
    assert raised == [error]


# --- processes ------------------------------------------------------------------------------------------------------------


FULL = """
import os, signal, socketserver, threading
from compat.classic import connection

class Stay(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        signal.pause()

class Server(socketserver.ForkingTCPServer):
    max_children = 1

    def collect_children(self, **options):
        if self.active_children:
            full.set()
        super().collect_children(**options)

def ended(run):
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(OURS)
    return not thread.is_alive()

full = threading.Event()
server = Server(("127.0.0.1", 0), Stay)
server.block_on_close = False
"""


def test_shutdown_with_all_children_busy():
    source = """
loop = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
loop.start()
with connection(server) as client:
    pid = int(client.makefile("rb").readline())
    assert full.wait(10)
    print("returns" if ended(server.shutdown) else "waits for a child")
    os.kill(pid, signal.SIGKILL)
    loop.join()
"""
    assert both(FULL + source) == ("waits for a child", "returns")


def test_closing_with_all_children_busy():
    source = """
with connection(server) as client:
    server.handle_request()
    pid = int(client.makefile("rb").readline())
    print("returns" if ended(server.server_close) else "waits for a child")
    os.kill(pid, signal.SIGKILL)
"""
    assert both(FULL + source) == ("waits for a child", "returns")


def test_the_children_of_others():
    source = """
import subprocess
other = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
with connection(server) as client:
    server.handle_request()
    pid = int(client.makefile("rb").readline())
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    server.collect_children()
print(other.wait())
"""
    assert both(FULL + source) == ("0", "7")


def test_what_a_forked_handler_prints():
    source = """
import socketserver
from compat.classic import LOCAL, serving, talk

class Print(socketserver.BaseRequestHandler):
    def handle(self):
        print("from the handler")

print("from the parent")
server = socketserver.ForkingTCPServer(LOCAL, Print)
with serving(server):
    talk(server, b"")
"""
    here = Path(__file__).resolve().parents[1]
    buffered = {name: value for name, value in with_path(here).items() if name != "PYTHONUNBUFFERED"}
    assert both(source, env=buffered) == ("from the parent", "from the parent\nfrom the handler")


def test_a_fork_beside_other_threads():
    source = """
import logging, socketserver, warnings
from compat.classic import LOCAL, serving, talk

class Keep(logging.Handler):
    def emit(self, record):
        logged.append(record)

warned, logged = [], []
warnings.simplefilter("always", DeprecationWarning)
warnings.showwarning = lambda message, *_: warned.append(message) if "is multi-threaded" in str(message) else None
logging.getLogger("socketkit.forks").addHandler(Keep())
server = socketserver.ForkingTCPServer(LOCAL, socketserver.BaseRequestHandler)
with serving(server):
    for _ in range(2):
        talk(server, b"")
print(len(warned), len(logged))
"""
    assert both(source) == ("2 0" if sys.version_info >= (3, 12) else "0 0", "0 1")


# --- classes and handlers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "closed"), [(old, False), (new, True)], ids=["stdlib", "socketkit"])
def test_rfile_when_wfile_cannot_be_closed(library, closed):
    class Breaking(library.StreamRequestHandler):
        wbufsize = -1

        def handle(self):
            def fail():
                raise OnPurposeError

            files.append(self.rfile)
            writer, self.wfile = self.wfile, type("File", (), {"closed": False, "flush": lambda _: None, "close": lambda _: fail()})()
            writer.close()

    files = []
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OnPurposeError):
        Breaking(ours, None, None)
    assert files[0].closed is closed
    files[0].close()


def test_a_datagram_from_a_sender_without_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error(library, reply):
        class Handler(library.DatagramRequestHandler):
            def handle(self):
                self.wfile.write(reply)

        class Server(library.UnixDatagramServer):
            seen = None

            def handle_error(self, request, client_address):
                self.seen = sys.exc_info()[1]

        with Server("server", Handler) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", "server")
            server.handle_request()
        Path("server").unlink()
        return server.seen

    assert isinstance(error(old, b""), TypeError)
    assert isinstance(error(old, b"reply"), TypeError)
    assert error(new, b"") is None
    assert error(new, b"reply").errno == errno.EDESTADDRREQ


def test_forking_unix_classes():
    names = ("ForkingUnixStreamServer", "ForkingUnixDatagramServer")
    assert all(hasattr(old, name) for name in names) is (sys.version_info >= (3, 12))
    assert all(hasattr(new, name) for name in names)


def test_allow_reuse_port_on_unix_sockets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def bind(library, name):
        with type("Server", (library.UnixStreamServer,), {"allow_reuse_port": True})(name, None):
            return True

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            refused = True
        else:
            refused = False
    if refused and "AF_INET6" not in inspect.getsource(old.TCPServer.server_bind):
        with pytest.raises(OSError, match=r"\[Errno"):
            bind(old, "old")
    else:
        assert bind(old, "old")
    assert bind(new, "new")


@pytest.mark.parametrize(("library", "notes"), [(old, 0), (new, 1)], ids=["stdlib", "socketkit"])
def test_an_address_that_is_taken(library, notes):
    with socket.create_server(LOCAL) as listener:
        with pytest.raises(OSError, match="Address already in use") as caught:
            library.TCPServer(listener.getsockname(), None)
        found = getattr(caught.value, "__notes__", [])
        assert len(found) == notes
        assert all("allow_reuse_address" in note and str(listener.getsockname()[1]) in note for note in found)


def test_no_delay_under_socketkit_run(tmp_path):
    script = tmp_path / "program.py"
    script.write_text("""
import socket, socketserver
from compat.classic import LOCAL, serving, talk

class Report(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % bool(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

server = socketserver.TCPServer(LOCAL, Report)
with serving(server):
    print(talk(server, b"").decode())
""")
    path = with_path(Path(__file__).resolve().parents[1])
    assert run(sys.executable, str(script), env=path).stdout.strip() == "0"
    assert run(sys.executable, "-m", "socketkit", "run", str(script), env=path).stdout.strip() == "1"


def test_process_request_thread_without_the_mix_in():
    assert not hasattr(old.TCPServer, "process_request_thread")
    with new.TCPServer(LOCAL, upper(new)) as server, connection(server) as client:
        client.sendall(b"x\n")
        server.process_request_thread(*server.get_request())
        assert client.recv(10) == b"X\n"
        assert client.recv(10) == b""


@pytest.mark.parametrize("library", [old, new], ids=["theirs", "ours"])
def test_a_replaced_writer_and_a_server_of_another_kind(library, monkeypatch):
    class Writer(library._SocketWriter):
        pass

    class Look(library.StreamRequestHandler):
        def handle(self):
            made.append(type(self.wfile) is Writer)

    monkeypatch.setattr(library, "_SocketWriter", Writer)
    made = []
    ours, theirs = socket.socketpair()
    with ours, theirs, library.TCPServer(LOCAL, Look) as server:
        for owner in (server, object()):
            Look(ours, ("peer", 1), owner)
    assert made == [True, library is old]
