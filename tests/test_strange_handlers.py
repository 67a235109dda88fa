"""Handlers that do more than the usual: each sees and is seen under every dispatcher as under the standard library.

A trick is a handler class and what a client does with it. What the client then sees, and what the handler notes, has to be the same as
under the standard library's threading server, which says what is right.
"""

import contextlib
import contextvars
import functools
import http.client
import http.server
import io
import os
import re
import select
import shutil
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import tempfile
import threading
import time

import pytest

from helpers import innards
from socketkit import TCP, ConversationHandler, Graceful, Server
from socketkit import socketserver as classic
from socketkit._engine.override import Override
from socketkit.composition import config

DISPATCHERS = ("thread", "pool:8", "adaptive", "executor", "asyncio")
ANYWHERE = TCP("127.0.0.1", 0)


# --- where the handlers run --------------------------------------------------------------------------------------------


def noting(kind, handler):
    """Return a subclass of a server class whose errors are among the handler's notes."""
    return type("Noting", (kind,), {"daemon_threads": True, "handle_error": lambda *_: handler.notes.append("error")})


@contextlib.contextmanager
def looping(server):
    """Serve in a thread; the address is what the block gets."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def plain(handler, _dispatcher):
    return looping(noting(socketserver.ThreadingTCPServer, handler)(("127.0.0.1", 0), handler))


@contextlib.contextmanager
def composed(handler, dispatcher):
    with noting(Server, handler)(ANYWHERE, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=2)).start() as server:
        yield server.addresses[0]
    assert server.stats().active == 0


@contextlib.contextmanager
def under(dispatcher):
    """Have the dispatcher take the place of the classic classes' own."""
    Override.choose(config.dispatcher(dispatcher), Graceful(drain=2))
    try:
        yield
    finally:
        Override.choose()


@contextlib.contextmanager
def overridden(handler, dispatcher):
    with under(dispatcher), looping(noting(classic.ThreadingTCPServer, handler)(("127.0.0.1", 0), handler)) as address:
        yield address


# --- the tricks --------------------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with a text that each trick makes for itself, and notes what happens."""

    protocol_version = "HTTP/1.1"
    notes: list

    def text(self):
        return "ok"

    def do_GET(self):
        body = self.text().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):  # noqa: A002 - the signature that there is
        if not format.startswith('"'):  # no log of requests
            self.notes.append(format % arguments)


def pages(address, count=2, pause=lambda: None):
    """Ask for pages on one connection; return their texts, and how it ends."""
    client = http.client.HTTPConnection(*address, timeout=5)
    seen = []
    try:
        for _ in range(count):
            client.request("GET", "/")
            seen.append(client.getresponse().read().decode())
            pause()
    except (OSError, http.client.HTTPException) as error:
        seen.append(type(error).__name__)
    finally:
        client.close()
    return seen


class OpensAroundItsConstructor(Page):
    def __init__(self, *arguments):
        self.open = True
        try:
            super().__init__(*arguments)
        finally:
            self.open = False

    def text(self):
        return f"open: {self.open}"


class SwallowsInItsConstructor(Page):
    def __init__(self, *arguments):
        with contextlib.suppress(ValueError):
            super().__init__(*arguments)

    def text(self):
        raise ValueError("the constructor swallows it")


class Registered(Page):
    def __init_subclass__(cls, *, route, **options):
        super().__init_subclass__(**options)
        cls.route = route


class TakesAnArgument(Registered, route="/here"):
    def text(self):
        return self.route


class Final(type):
    def __new__(mcs, name, bases, namespace):
        if any(isinstance(base, Final) for base in bases):
            raise TypeError("nobody may derive from it")
        return super().__new__(mcs, name, bases, namespace)


class RefusesSubclasses(Page, metaclass=Final):
    pass


class Counted(type):
    def __call__(cls, *arguments):
        cls.notes.append("made")
        return super().__call__(*arguments)


class HasAMetaclass(Page, metaclass=Counted):
    pass


class MakesItself(Page):
    def __new__(cls, *arguments):
        cls.notes.append("new")
        return super().__new__(cls)


class OpensADatabase(Page):
    def setup(self):
        super().setup()
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table visits (count)")

    def text(self):
        self.database.execute("insert into visits values (1)")
        return str(self.database.execute("select count(*) from visits").fetchone()[0])

    def finish(self):
        self.database.close()
        super().finish()


WHO = contextvars.ContextVar("WHO", default="nobody")


class SetsAContextVariable(Page):
    def setup(self):
        super().setup()
        WHO.set("somebody")

    def text(self):
        return WHO.get()


class BuffersByItself(Page):
    def setup(self):
        super().setup()
        self.rfile = io.BufferedReader(self.rfile.detach(), 1 << 17)


class BuffersWithASecondFile(Page):
    def setup(self):
        super().setup()
        self.rfile = self.connection.makefile("rb", 1 << 17)


class Raw(io.RawIOBase):
    def __init__(self, sock):
        self.sock = sock

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.sock.recv_into(buffer)


class ReadsThroughAFileOfItsOwn(Page):
    def setup(self):
        super().setup()
        self.rfile = io.BufferedReader(Raw(self.connection), 1 << 17)


class ChangesItsFileWhileItServes(Page):
    changed = False

    def text(self):
        if not self.changed:
            self.rfile = io.BufferedReader(Chained(self.rfile.peek(), self.connection), 1 << 17)
            self.changed = True
        return "changed"


class Chained(Raw):
    """Bytes that were read already, then those of a socket."""

    def __init__(self, waiting, sock):
        super().__init__(sock)
        self.waiting = waiting

    def readinto(self, buffer):
        if not self.waiting:
            return super().readinto(buffer)
        count = min(len(buffer), len(self.waiting))
        buffer[:count], self.waiting = self.waiting[:count], self.waiting[count:]
        return count


def pipelined(address):
    """Send two requests at once; return the texts of the answers."""
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 2)
        received, texts = b"", []
        while len(texts) < 2 and (more := client.recv(1 << 16)):
            received += more
            found = re.findall(rb"Content-Length: (\d+)\r\n\r\n([a-z]*)", received)
            texts = [text for length, text in found if len(text) == int(length)]
        return texts


class TimesOut(Page):
    timeout = 0.2


class SetsATimeout(Page):
    def setup(self):
        super().setup()
        self.connection.settimeout(0.2)


def idle(address):
    """Ask for a page, then say nothing; return what comes after it: the end, and not a timeout of the client's own."""
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        while not client.recv(1 << 16).endswith(b"ok"):
            pass
        return client.recv(1)


class Lines(ConversationHandler):
    notes: list

    def handle_one_request(self):
        answer = self.answer(self.rfile.readline())
        if answer:
            self.wfile.write(answer)

    def answer(self, line):
        return line[::-1]


class SetsAVariableForItsLines(Lines):
    def setup(self):
        super().setup()
        WHO.set("somebody")

    def answer(self, line):
        return WHO.get().encode() + b"\n"


def lines(address, count=3):
    with socket.create_connection(address, timeout=5) as client, client.makefile("rb") as answers:
        seen = []
        for number in range(count):
            client.sendall(b"%d\n" % number)
            seen.append(answers.readline())
        return seen


# --- with TLS ----------------------------------------------------------------------------------------------------------


@functools.cache
def server_side():
    """Return a context with a certificate made for these tests."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        make = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=here -days 2 -keyout {key} -out {certificate}"
        )
        subprocess.run(make.split(), check=True, capture_output=True)
        context.load_cert_chain(certificate, key)
    return context


def client_side(sock):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


class Closes:
    """A handler that has replaced its connection closes what it has put in its place."""

    def finish(self):
        super().finish()
        self.connection.close()


class EncryptsInSetup(Closes, Page):
    def setup(self):
        self.request = server_side().wrap_socket(self.request, server_side=True)
        super().setup()


class EncryptsAndKeepsItsRequest(Closes, Page):
    def setup(self):
        super().setup()
        self.connection = server_side().wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)


def encrypted(address, pause=0.0):
    """Ask for two pages over TLS; return what comes, byte for byte."""
    with socket.create_connection(address, timeout=5) as sock:
        time.sleep(pause)  # the client is slow: this is what is tested
        with client_side(sock) as client, client.makefile("rb") as answers:
            seen = []
            for _ in range(2):
                client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                headers = iter(answers.readline, b"\r\n")
                seen.append([line for line in headers if line.startswith((b"HTTP", b"Content-Length"))] + [answers.read(2)])
            return seen


class StartsTls(Closes, Lines):
    def answer(self, line):
        if line == b"starttls\n":
            self.wfile.write(b"go\n")
            self.request = server_side().wrap_socket(self.request, server_side=True)
            self.setup()
            return b""
        return line[::-1]


def upgraded(address):
    with socket.create_connection(address, timeout=5) as sock:
        sock.sendall(b"1\n")
        seen = [sock.recv(2)]
        sock.sendall(b"starttls\n")
        seen.append(sock.recv(3))
        with client_side(sock) as client, client.makefile("rb") as answers:
            for number in range(2):
                client.sendall(b"%d\n" % number)
                seen.append(answers.read(2))
        return seen


class Tunnels(Closes, Page):
    """Answers CONNECT by speaking TLS itself, as a proxy that looks into its clients' traffic does."""

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.connection = server_side().wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False


def tunnelled(address):
    with socket.create_connection(address, timeout=5) as sock:
        sock.sendall(b"CONNECT there:443 HTTP/1.1\r\nHost: there\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        with client_side(sock) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: there\r\nConnection: close\r\n\r\n")
            received = b""
            while not received.endswith(b"ok"):
                received += client.recv(1 << 16)
            return received.startswith(b"HTTP/1.1 200")


TRICKS = [
    (OpensAroundItsConstructor, pages),
    (SwallowsInItsConstructor, functools.partial(pages, count=1)),
    (TakesAnArgument, pages),
    (RefusesSubclasses, pages),
    (HasAMetaclass, pages),
    (MakesItself, pages),
    (OpensADatabase, pages),
    (SetsAContextVariable, pages),
    (BuffersByItself, pipelined),
    (BuffersWithASecondFile, pipelined),
    (ReadsThroughAFileOfItsOwn, pipelined),
    (ChangesItsFileWhileItServes, pipelined),
    (TimesOut, idle),
    (SetsATimeout, idle),
    (SetsAVariableForItsLines, lines),
    (EncryptsInSetup, encrypted),
    (EncryptsAndKeepsItsRequest, functools.partial(encrypted, pause=0.05)),
    (StartsTls, upgraded),
    (Tunnels, tunnelled),
]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("where", [composed, overridden], ids=["composed", "classic"])
@pytest.mark.parametrize(("handler", "client"), TRICKS, ids=[handler.__name__ for handler, _ in TRICKS])
def test_a_trick_works_as_under_the_standard_library(handler, client, where, dispatcher):
    right = seen_by(handler, client, plain, None)
    assert seen_by(handler, client, where, dispatcher) == right


def seen_by(handler, client, where, dispatcher):
    handler.notes = []
    with where(handler, dispatcher) as address:
        seen = client(address)
    return seen, handler.notes


@pytest.mark.parametrize("dispatcher", ["fork", "thread", "pool:8", "adaptive"])
def test_a_server_that_speaks_tls_in_get_request_serves_and_refuses_with_a_reply(dispatcher):
    class Encrypted(Server):
        def get_request(self):
            request, client_address = super().get_request()
            return server_side().wrap_socket(request, server_side=True), client_address

    def echo(request, client_address, server):
        request.sendall(request.recv(10))
        request.recv(1)

    limits = {"max_connections": 1, "overflow": "reject", "reply": "full\n"}
    with Encrypted(ANYWHERE, echo, dispatcher=dispatcher, limits=limits, lifecycle=Graceful(drain=2)).start() as server:
        with client_side(socket.create_connection(server.addresses[0], timeout=5)) as first:
            first.sendall(b"hello")
            assert first.recv(10) == b"hello"
            with client_side(socket.create_connection(server.addresses[0], timeout=5)) as second:
                assert second.recv(10) == b"full\n"
            assert server.state.value == "running"


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_silent_client_of_a_socket_with_a_timeout_holds_up_nobody(dispatcher):
    class Impatient(Server):
        def get_request(self):
            request, client_address = super().get_request()
            request.settimeout(20)
            return request, client_address

    handler = type("Handler", (Page,), {"notes": []})
    with (
        Impatient(ANYWHERE, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=0)).start() as server,
        contextlib.ExitStack() as silent,
    ):
        for _ in range(3):
            silent.enter_context(socket.create_connection(server.addresses[0]))
        assert pages(server.addresses[0]) == ["ok", "ok"]


class Weird(type):
    @property
    def handle(cls):
        raise ZeroDivisionError("looked at")


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_whatever_raises_wherever_the_connection_is_closed(dispatcher):
    class Handler(metaclass=Weird):
        pass

    with Server(ANYWHERE, Handler, dispatcher=dispatcher).start() as server:
        with socket.create_connection(server.addresses[0], timeout=5) as client:
            client.sendall(b"x")
            assert client.recv(1) == b""
        server.stop()
        assert server.stats().outcomes == {"failed": 1}


class OfItsOwn(classic.BaseServer):
    """A server of lines that come in datagrams, and that has no attribute `socket`."""

    def __init__(self, place, handler):
        super().__init__(place, handler)
        self.channel = socket.socket(type=socket.SOCK_DGRAM)
        self.channel.bind(place)

    def fileno(self):
        return self.channel.fileno()

    def get_request(self):
        data, client_address = self.channel.recvfrom(100)
        return (data, self.channel), client_address

    def server_close(self):
        self.channel.close()


@pytest.mark.parametrize("dispatcher", [*DISPATCHERS, "sync"])
def test_a_server_class_without_a_socket_of_that_name_is_served(dispatcher):
    def reverse(request, client_address, server):
        request[1].sendto(request[0][::-1], client_address)

    server = OfItsOwn(("127.0.0.1", 0), reverse)
    where = server.channel.getsockname()
    with under(dispatcher), looping(server), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"one", where)
        assert client.recv(10) == b"eno"


class AnswersAtOnce:
    """Reads nothing of what is sent with a request."""

    def do_POST(self):  # noqa: N802 - the name is that of the method
        self.close_connection = True
        self.do_GET()

    def text(self):
        return "x" * 1_000_000


class WithAConstructor(AnswersAtOnce, OpensAroundItsConstructor):
    pass


class WithAFileOfItsOwn(AnswersAtOnce, ReadsThroughAFileOfItsOwn):
    pass


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("handler", [WithAConstructor, WithAFileOfItsOwn])
def test_bytes_that_it_leaves_unread_do_not_destroy_the_reply(handler, dispatcher):
    with composed(handler, dispatcher) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
        received = b""
        while more := client.recv(1 << 16):
            received += more
    assert received.endswith(b"x" * 1_000_000)


class ClosesItself(Page):
    """Closes its connection as proxies do, while a copy of the descriptor, or a child process, keeps it open."""

    copies: list

    def do_GET(self):
        self.copies.append(self.connection.dup())
        super().do_GET()
        self.wfile.flush()
        if self.path == "/at-once":
            os.close(self.connection.detach())
        elif self.path == "/soon":
            self.connection.close()
            self.close_connection = True


@pytest.mark.parametrize("path", ["/soon", "/at-once"])
@pytest.mark.parametrize("dispatcher", ["pool:8", "adaptive", "executor", "asyncio"])
def test_a_socket_that_its_handler_closes_is_not_reported_for_ever(dispatcher, path):
    class Handler(ClosesItself):
        copies, notes = [], []

    def is_reported():
        return bool(select.select([innards.intake(server)], [], [], 0)[0])

    with noting(Server, Handler)(ANYWHERE, Handler, dispatcher=dispatcher).start() as server:
        with socket.create_connection(server.addresses[0]) as client, client.makefile("rb") as answer:
            client.settimeout(10)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"200" in answer.readline()
            while (line := answer.readline()) not in {b"\r\n", b""}:
                assert line
            assert answer.read(2) == b"ok"
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            assert b"200" in answer.readline()
            while server.stats().active:
                time.sleep(0.001)
            client.sendall(b"unread")
            assert pages(server.addresses[0]) == ["ok", "ok"]
            while is_reported():
                time.sleep(0.001)
        for copy in Handler.copies:
            copy.close()
