"""Connections with layers wait as greenlets: for their header, for their handshake, and in every call of an encrypted socket."""

from __future__ import annotations

import contextlib
import io
import queue
import signal
import socket
import ssl
import threading

import pytest
from socketkit_gevent import Gevent

from socketkit import TCP, TLS, Graceful, Layered, Limits, ProxyProtocol, Server, StreamRequestHandler
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address
from socketkit.testing.programs import Program

LATE = 20


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def trusting():
    return ssl.create_default_context(cafile=authority("Authority"))


def encrypted(handler, *before, limits=None, drain=5):
    cert, key = certificate()
    transport = Layered(TCP("127.0.0.1", 0, backlog=1000), *before, TLS(cert, key))
    return Server(transport, handler, dispatcher=Gevent(), lifecycle=Graceful(drain=drain), limits=limits or Limits())


def connect(server, header=b""):
    raw = socket.create_connection(server.addresses[0], timeout=LATE)
    raw.sendall(header)
    return trusting().wrap_socket(raw, server_hostname="localhost")


@contextlib.contextmanager
def silent(server, count, data=b""):
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(server.addresses[0], timeout=LATE))
            client.sendall(data)
        yield


def client_hello():
    """Return the first bytes of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


# --- waiting for clients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sends", ["nothing", "half a handshake"])
def test_five_hundred_clients_in_their_handshakes_hold_up_nobody(sends):
    threads = threading.active_count()
    with encrypted(Upper).start() as server, silent(server, 500, client_hello()[:100] if sends != "nothing" else b""):
        for _ in range(3):
            with connect(server) as client:
                client.sendall(b"text\n")
                assert client.recv(100) == b"TEXT\n"
        assert threading.active_count() <= threads + 2  # serving, and the timer


@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0.2"])
def test_clients_that_have_not_sent_their_header_hold_up_nobody(header):
    complete = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"
    with encrypted(Upper, ProxyProtocol(["127.0.0.0/8"])).start() as server, silent(server, 50, header), silent(server, 50, complete):
        with connect(server, complete) as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b"TEXT\n"


# --- what handlers do ------------------------------------------------------------------------------------------------


def _filled(receive):
    def call(request):
        buffer = bytearray(100)
        return bytes(buffer[: receive(request, buffer)])

    return call


RECEIVES = {
    "recv": lambda request: request.recv(100),
    "recv_into": _filled(lambda request, buffer: request.recv_into(buffer)),
    "read": lambda request: request.read(100),
    "makefile": lambda request: request.makefile("rb").readline(),
}
PLAIN_RECEIVES = {
    "recv": RECEIVES["recv"],
    "recv_into": RECEIVES["recv_into"],
    "recvfrom": lambda request: request.recvfrom(100)[0],
    "recvfrom_into": _filled(lambda request, buffer: request.recvfrom_into(buffer, 100)[0]),
    "makefile": RECEIVES["makefile"],
}
SENDS = {
    "send": lambda request, data: [data := data[request.send(data) :] for _ in iter(lambda: bool(data), False)],
    "write": lambda request, data: [data := data[request.write(data) :] for _ in iter(lambda: bool(data), False)],
    "sendall": lambda request, data: request.sendall(data),
    "makefile": lambda request, data: request.makefile("wb").write(data),
    "sendfile": lambda request, data: request.sendfile(io.BytesIO(data)),
}
MUCH = 8_000_000


def received(client):
    total = 0
    while data := client.recv(1_000_000):
        total += len(data)
    return total


def is_served(server):
    """Return whether a fresh client is served while others wait."""
    with connect(server) as client:
        client.sendall(b"other\n")
        return client.recv(100) == b"other\n"


class Waits(StreamRequestHandler):
    """Does what the test asks for if the client says "first", and otherwise echoes."""

    def handle(self):
        line = self.rfile.readline()
        if line == b"first\n":
            self.wfile.write(b"waits\n")
            self.server.does(self.request)
        else:
            self.wfile.write(line)


@contextlib.contextmanager
def waiting(does, limits=None):
    """Serve a client whose handler does something; yield the server and the client once the handler is about to do it."""
    server = encrypted(Waits, limits=limits)
    server.does = does
    with server.start(), connect(server) as client:
        client.sendall(b"first\n")
        assert client.recv(100) == b"waits\n"
        yield server, client


@pytest.mark.parametrize("call", RECEIVES)
def test_while_one_handler_waits_to_receive_others_are_served(call):
    with waiting(lambda request: request.sendall(RECEIVES[call](request))) as (server, client):
        assert is_served(server)
        client.sendall(b"text\n")
        assert client.recv(100) == b"text\n"


@pytest.mark.parametrize("call", SENDS)
def test_while_one_handler_waits_to_send_others_are_served(call):
    with waiting(lambda request: SENDS[call](request, bytes(MUCH))) as (server, client):
        assert is_served(server)
        assert received(client) == MUCH


@pytest.mark.parametrize("call", [each for each in SENDS if each != "sendfile"])  # which tries again: Lib/socket.py, _sendfile_use_send
def test_a_client_that_takes_nothing_is_given_up_after_the_limit_for_it(call):
    with waiting(lambda request: SENDS[call](request, bytes(MUCH)), Limits(write_stall=0.2)) as (server, _client):
        assert server.stop(drain=LATE).forced == 0
        assert server.stats().outcomes == {"timed out": 1}


def test_while_one_handler_waits_for_the_last_word_of_its_client_others_are_served():
    ended = []
    with waiting(lambda request: ended.append(request.unwrap())) as (server, client):
        assert is_served(server)
        assert not ended
        client.unwrap()
    assert len(ended) == 1


@pytest.mark.parametrize("call", PLAIN_RECEIVES)
def test_after_the_last_word_both_go_on_without_tls_and_hold_up_nobody(call):
    def goes_on(request):
        plain = request.unwrap()
        plain.sendall(PLAIN_RECEIVES[call](plain))
        plain.sendall(bytes(MUCH))

    with waiting(goes_on) as (server, client):
        plain = client.unwrap()
        assert is_served(server)
        plain.sendall(b"text\n")
        assert plain.recv(5) == b"text\n"
        assert is_served(server)
        assert received(plain) == MUCH


def test_a_timeout_ends_the_wait_and_a_timeout_of_zero_does_not_wait():
    def times_out(request):
        request.settimeout(0.05)
        for wait in (request.recv, request.read):
            with pytest.raises(TimeoutError):
                wait(100)
        request.setblocking(False)
        assert (request.gettimeout(), request.timeout, request.getblocking()) == (0, 0, False)
        with pytest.raises(ssl.SSLWantReadError):
            request.recv(100)
        request.setblocking(True)
        assert (request.gettimeout(), request.timeout, request.getblocking()) == (None, None, True)
        with pytest.raises(ValueError, match="Timeout value out of range"):
            request.settimeout(-1)
        checked.set()
        request.sendall(request.recv(100))

    checked = threading.Event()
    with waiting(times_out) as (_server, client):
        assert checked.wait(LATE)
        client.sendall(b"text\n")
        assert client.recv(100) == b"text\n"


def test_a_socket_that_another_greenlet_closes_wakes_the_one_that_waits():
    requests = []

    def reads_or_closes(request, client_address, server):
        requests.append(request)
        if request.recv(100) == b"closes":
            requests[0].close()
            return
        request.sendall(b"waits")
        with pytest.raises((OSError, ValueError)):
            request.recv(100)
        woken.set()

    woken = threading.Event()
    with encrypted(reads_or_closes).start() as server, connect(server) as client:
        client.sendall(b"reads")
        assert client.recv(100) == b"waits"
        with connect(server) as other:
            other.sendall(b"closes")
            assert woken.wait(LATE)


def test_another_thread_may_shut_down_a_socket_that_the_server_has_wrapped():
    class Wraps(Server):
        def get_request(self):
            request, client_address = super().get_request()
            return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False), client_address

    def reads(request, client_address, server):
        request.do_handshake()
        requests.put(request)
        requests.put(request.recv(100))

    requests = queue.SimpleQueue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    with Wraps("tcp://127.0.0.1:0", reads, dispatcher=Gevent()).start() as server, silent(server, 10), connect(server):
        request = requests.get(timeout=LATE)
        with connect(server):
            requests.get(timeout=LATE)  # so the first handler waits by now
            request.shutdown(socket.SHUT_RDWR)
            assert requests.get(timeout=LATE) == b""


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sends", ["nothing", "half a handshake"])
def test_the_limit_for_handshakes_ends_a_client_while_others_are_served(sends):
    server = encrypted(Upper, limits=Limits(handshake=0.3))
    with server.start(), socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(client_hello()[:100] if sends != "nothing" else b"")
        assert client.recv(100) == b""
    assert server.stats().outcomes == {"timed out": 1}


@pytest.mark.parametrize("does", RECEIVES)
def test_a_handler_that_reads_at_the_deadline_sees_the_end_and_leaves_in_peace(does):
    read = []
    with waiting(lambda request: read.append(RECEIVES[does](request))) as (server, client):
        report = server.stop(drain=0.05)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert client.recv(100) == b""
    assert (report.finished, report.forced, report.stuck) == (0, 1, ())
    assert [bytes(each) for each in read] == [b""]
    assert server.stats().outcomes == {"finished": 1}


# --- programs --------------------------------------------------------------------------------------------------------


PROGRAM = """
import sys
if sys.argv[1] == "patched":
    import gevent.monkey
    gevent.monkey.patch_all(select=False)
import socketserver, ssl, threading
from socketkit import Graceful, Layered, Limits, Server, StreamRequestHandler, TCP, TLS
from socketkit_gevent import Gevent
way, cert, key, ca, sni_cert, sni_key = sys.argv[2:]

class Tells(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"who\\n":
                peer = self.request.getpeercert()
                peer = peer and dict(pair for (pair,) in peer["subject"])["commonName"]
                line = f"{peer} {self.request.selected_alpn_protocol()} {type(self.request).__name__}\\n".encode()
            self.wfile.write(line)

def own_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["mine"])
    return context

class GetRequest(socketserver.ThreadingTCPServer):
    def get_request(self):
        request, client_address = super().get_request()
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False), client_address

class OwnThread(GetRequest):
    def process_request(self, *request):
        threading.Thread(target=self.process_request_thread, args=request, daemon=True).start()

if way in {"files", "context"}:
    options = {"context": own_context} if way == "context" else dict(
        cert=cert, key=key, client="optional", client_ca=ca, alpn=["mine"], sni={"other.example": (sni_cert, sni_key)}
    )
    limits = Limits(handshake=2.0)
    server = Server(Layered(TCP("127.0.0.1", 0), TLS(**options)), Tells, dispatcher=Gevent(), lifecycle=Graceful(drain=5), limits=limits)
    with server:
        print("serving tcp://127.0.0.1:%d" % server.addresses[0][1], flush=True)
        server.serve_forever()
    print("ended", server.stop(), flush=True)
else:
    context = own_context()
    kind = {"listener": socketserver.ThreadingTCPServer, "get_request": GetRequest, "own thread": OwnThread}[way]
    kind.daemon_threads, kind.request_queue_size = True, 500
    server = kind(("127.0.0.1", 0), Tells)
    if way == "listener":
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print("serving tcp://127.0.0.1:%d" % server.server_address[1], flush=True)
    server.serve_forever()
    server.server_close()
    print("ended", flush=True)
"""


@contextlib.contextmanager
def program(patched, way, folder):
    files = (*certificate(), authority("Authority"), *certificate("other.example"))
    script = folder / "program.py"
    script.write_text(PROGRAM)
    command = ("-m", "socketkit", "run", "--dispatcher", "gevent", "--lifecycle", "graceful:drain=5", str(script))
    with Program.python(*command, "patched" if patched else "", way, *files) as running:
        yield running, address(running.line(r"^serving (\S+)")[0][1])


def ended(running):
    """Stop the program; return what it says at its end."""
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0
    return running.line("^ended(.*)")[0][1]


def talk(where, words, name="localhost", **options):
    context = trusting()
    context.set_alpn_protocols(["mine"])
    context.load_cert_chain(*certificate("somebody"))
    raw = socket.create_connection(where, timeout=LATE)
    with context.wrap_socket(raw, server_hostname=name, **options) as client:
        client.sendall(words)
        return client.recv(100)


@pytest.mark.parametrize("way", ["files", "context", "listener", "get_request", "own thread"])
@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_silent_clients_hold_up_nobody_in_any_program(patched, way, tmp_path):
    with program(patched, way, tmp_path) as (running, where), contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(where, timeout=LATE)) for _ in range(100)]
        assert [talk(where, b"who\n").partition(b" ")[0] for _ in range(3)] == [b"somebody"] * 3
        assert talk(where, b"who\n").split()[1] == b"mine"
        if way == "files":
            assert talk(where, b"text\n", "other.example") == b"text\n"
            assert [each.recv(1) for each in waiting] == [b""] * 100  # the limit for handshakes
            assert "0 forced, 0 stuck" in ended(running)
        else:
            for each in waiting:
                each.close()
            ended(running)
