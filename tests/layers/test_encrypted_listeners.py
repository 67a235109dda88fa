"""Programs that put TLS on the listener of a classic server: one silent client holds up nobody, and nothing else changes."""

import http.server
import socket
import socketserver as standard
import ssl
import subprocess
import threading

import pytest

from helpers.green import GREEN
from socketkit import Graceful
from socketkit import socketserver as classic
from socketkit._engine.override import Override
from socketkit.composition import config
from socketkit.testing.certificates import authority, certificate

LATE = 20


class Tells(standard.StreamRequestHandler):
    def setup(self):
        super().setup()
        self.cipher = self.request.cipher()  # only after a handshake

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper() if self.cipher else b"no handshake\n")


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *arguments):
        pass


def encrypted(kind, handler, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    server = kind(("127.0.0.1", 0), handler)
    server.socket.listen(100)  # with the five of the class, the kernel drops clients that arrive together, and they wait for seconds
    server.socket = context.wrap_socket(server.socket, server_side=True, **options)
    return server


class Looping:
    def __init__(self, server, dispatcher=None):
        self.server, self.dispatcher = server, dispatcher

    def __enter__(self):
        if self.dispatcher:
            Override.choose(config.dispatcher(self.dispatcher), Graceful(drain=5))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self.server.server_address

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        Override.choose()


def connect(address):
    raw = socket.create_connection(address, timeout=LATE)
    return ssl.create_default_context(cafile=authority("Authority")).wrap_socket(raw, server_hostname="localhost")


UNDER = [None, "thread", "pool:2", "adaptive:8", "executor", "asyncio", GREEN]


@pytest.mark.parametrize("handler", [Tells, Page])
@pytest.mark.parametrize("dispatcher", UNDER)
def test_silent_clients_hold_up_nobody(dispatcher, handler):
    server = encrypted(classic.ThreadingTCPServer, handler)
    server.daemon_threads = True
    with Looping(server, dispatcher) as address:
        silent = [socket.create_connection(address) for _ in range(50)]
        for _ in range(3):
            with connect(address) as client:
                for _ in range(2):
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n" if handler is Page else b"text\n")
                    received = client.recv(1000)
                    while handler is Page and b"page" not in received:
                        received += client.recv(1000)
                    assert b"page" in received if handler is Page else received == b"TEXT\n"
        for each in silent:
            each.close()


@pytest.mark.parametrize("server_class", [standard.TCPServer, classic.TCPServer, classic.ThreadingTCPServer])
def test_a_request_is_served_after_the_handshake(server_class):
    with Looping(encrypted(server_class, Tells)) as address, connect(address) as client:
        client.sendall(b"text\n")
        assert client.recv(100) == b"TEXT\n"


@pytest.mark.parametrize("dispatcher", UNDER)
def test_a_program_that_shakes_hands_itself_still_does(dispatcher):
    class Itself(standard.StreamRequestHandler):
        def setup(self):
            seen.append(self.request.version())
            self.request.do_handshake()
            super().setup()

        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    seen = []
    with Looping(encrypted(classic.ThreadingTCPServer, Itself, do_handshake_on_connect=False), dispatcher) as address:
        with connect(address) as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b"TEXT\n"
    assert seen == [None]


@pytest.mark.parametrize("dispatcher", UNDER)
def test_a_get_request_of_the_programs_own_may_read_first(dispatcher):
    class Reads(classic.ThreadingTCPServer):
        def get_request(self):
            sock, address = super().get_request()
            return sock, (*address, sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    with Looping(encrypted(Reads, Tells), dispatcher) as address, connect(address) as client:
        client.sendall(b"text\n")
        assert client.recv(100) == b"TEXT\n"


@pytest.mark.parametrize("dispatcher", UNDER)
def test_a_client_that_does_not_speak_tls_ends_without_a_word(dispatcher, capfd):
    server = encrypted(classic.ThreadingTCPServer, Tells)
    server.handle_error = lambda *_: pytest.fail("accept ignores such errors")
    with Looping(server, dispatcher) as address:
        with socket.create_connection(address, timeout=LATE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            try:
                while client.recv(1000):
                    pass
            except ConnectionResetError:
                pass
        with connect(address) as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b"TEXT\n"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dispatcher", UNDER)
def test_curl_is_answered_beside_fifty_silent_clients(dispatcher):
    with Looping(encrypted(http_server(), Page), dispatcher) as address:
        silent = [socket.create_connection(address) for _ in range(50)]
        url = f"https://localhost:{address[1]}/"
        command = ["curl", "-sS", "--fail", "--max-time", str(LATE), "--cacert", authority("Authority"), "--ipv4", url, url]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"pagepage"
        for each in silent:
            each.close()


def http_server():
    """Return the threading server of http.server, as `socketkit run` makes it."""

    class ThreadingHTTPServer(classic.ThreadingMixIn, classic.TCPServer):
        allow_reuse_address = True
        daemon_threads = True

    return ThreadingHTTPServer
