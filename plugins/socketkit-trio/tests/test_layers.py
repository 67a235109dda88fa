"""Layers of a transport before handlers for trio: PROXY headers, TLS, and layers that block."""

from __future__ import annotations

import contextlib
import select
import ssl
import threading

import attrs
import pytest
from socketkit_trio import Trio, TrioStreamRequestHandler

from socketkit import TCP, TLS, Layered, Limits, ProxyProtocol, Server
from socketkit.errors import IncompatibleError
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import connect, rest_of


class Upper(TrioStreamRequestHandler):
    async def handle(self):
        while data := await self.stream.receive_some():
            await self.stream.send_all(data.upper())


def stream_handler(handle, **attributes):
    return type("Handler", (TrioStreamRequestHandler,), {"handle": handle, **attributes})


@pytest.fixture
def context():
    """Return the context of clients."""
    return ssl.create_default_context(cafile=authority())


@pytest.fixture
def layer():
    """Return the layer with the server's certificate."""
    return TLS(*certificate())


def behind(*layers):
    return Layered(TCP("127.0.0.1", 0), *layers)


# --- PROXY headers -----------------------------------------------------------------------------------------------------


def test_a_handler_sees_the_client_that_a_header_names(serve):
    async def handle(self):
        await self.stream.send_all(f"{self.client_address[0]} {(await self.stream.receive_some()).decode()}".encode())

    served = serve(stream_handler(handle), transport=behind(ProxyProtocol(["127.0.0.0/8"])), dispatcher=Trio())
    silent, client = served.client(), served.client()
    client.sendall(b"PROXY TCP4 192.0.2.7 192.0")
    other = served.client()
    other.sendall(b"PROXY TCP4 192.0.2.8 192.0.2.1 50000 443\r\nhello")
    assert rest_of(other) == b"192.0.2.8 hello"
    client.sendall(b".2.1 50000 443\r\nhello")
    assert rest_of(client) == b"192.0.2.7 hello"
    served.server.stop(drain=0)
    assert silent.recv(10) == b""


def test_a_header_that_is_none_ends_its_own_connection(serve):
    served = serve(Upper, transport=behind(ProxyProtocol(["127.0.0.0/8"])), dispatcher=Trio())
    client = served.client()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(10) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"failed": 1}


def test_a_client_that_sends_no_header_in_time_is_disconnected(serve):
    transport = behind(ProxyProtocol(["127.0.0.0/8"]))
    served = serve(Upper, transport=transport, dispatcher=Trio(), limits=Limits(handshake=0.1))
    assert served.client().recv(10) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"timed out": 1}


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_a_client_with_tls_is_answered_and_told_the_end(serve, layer, context):
    async def handle(self):
        assert self.request.version() in {"TLSv1.2", "TLSv1.3"}
        assert self.peer_certificate is None
        for _ in range(3):
            await self.stream.send_all((await self.stream.receive_some()).upper())
        with pytest.raises(RuntimeError, match="cannot be closed in one direction"):
            await self.stream.send_eof()

    served = serve(stream_handler(handle), transport=behind(layer), dispatcher=Trio())
    with context.wrap_socket(served.client(), server_hostname="localhost", suppress_ragged_eofs=False) as client:
        for word in (b"one", b"two", b"three"):
            client.sendall(word)
            assert client.recv(100) == word.upper()
        assert client.recv(100) == b""  # close_notify, or it would raise
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}


def test_clients_in_their_handshake_hold_up_nobody(serve, layer, context):
    served = serve(Upper, transport=behind(layer), dispatcher=Trio())
    waiting = [served.client() for _ in range(20)]
    for client in waiting[::2]:
        client.sendall(b"\x16\x03\x01")  # the beginning of a handshake
    with context.wrap_socket(served.client(), server_hostname="localhost") as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
    assert served.server.stop(drain=0).stuck == ()


def test_much_goes_both_ways_at_once_over_tls(serve, layer, context):
    size = 3_000_000
    served = serve(Upper, transport=behind(layer), dispatcher=Trio())
    with context.wrap_socket(served.client(30), server_hostname="localhost") as client:
        client.setblocking(False)  # because Python's sockets with TLS are not for two threads at once
        sent = received = 0
        while received < size:
            select.select([client], [client] if sent < size else [], [], 10)
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent += client.send(b"x" * min(16384, size - sent)) if sent < size else 0
            with contextlib.suppress(ssl.SSLWantReadError):
                data = client.recv(65536)
                assert data
                assert data == b"X" * len(data)
                received += len(data)


def test_a_client_without_tls_gets_an_alert(serve, layer):
    served = serve(Upper, transport=behind(layer), dispatcher=Trio())
    client = served.client()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert rest_of(client)[:1] == b"\x15"
    served.server.stop()
    assert served.server.stats().outcomes == {"failed": 1}


def test_the_certificate_of_a_client_is_known(serve, layer, context):
    async def handle(self):
        ((_, name), _) = self.peer_certificate["subjectAltName"]
        await self.stream.send_all(name.encode())

    asking = attrs.evolve(layer, client="required", client_ca=authority())
    context.load_cert_chain(*certificate("client.example"))
    served = serve(stream_handler(handle, speaks_first=True), transport=behind(asking), dispatcher=Trio())
    with context.wrap_socket(served.client(), server_hostname="localhost") as client:
        assert rest_of(client) == b"client.example"


def test_a_client_that_reads_nothing_over_tls_is_not_waited_for(serve, layer, context):
    async def handle(self):
        await self.stream.receive_some()
        await self.stream.send_all(bytes(100_000_000))

    served = serve(stream_handler(handle), transport=behind(layer), dispatcher=Trio(), limits=Limits(write_stall=0.2))
    with context.wrap_socket(served.client(), server_hostname="localhost") as client:
        client.sendall(b"x")
        served.server.stop()
        assert served.server.stats().outcomes == {"timed out": 1}


def test_tls_may_follow_a_header(serve, layer, context):
    async def handle(self):
        await self.stream.send_all(self.client_address[0].encode())

    served = serve(stream_handler(handle), transport=behind(ProxyProtocol(["127.0.0.0/8"]), layer), dispatcher=Trio())
    client = served.client()
    client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n")
    with context.wrap_socket(client, server_hostname="localhost") as client:
        assert rest_of(client) == b"192.0.2.7"


def test_an_upgrade_within_a_handler_is_refused(layer):
    with pytest.raises(IncompatibleError, match=r"until their handler calls upgrade_tls\(\), which Upper does not have"):
        Server(behind(attrs.evolve(layer, upgrade=True)), Upper, dispatcher=Trio())


# --- layers that block -------------------------------------------------------------------------------------------------


async def handle_address(self):
    address = self.client_address
    await self.stream.send_all((address if isinstance(address, str) else address[0]).encode())


@attrs.frozen
class Waits:
    """Waits in its thread until it may go on."""

    go: threading.Event = attrs.field(factory=threading.Event)
    threads: list = attrs.field(factory=list)

    def wrap(self, request, client_address):
        self.threads.append(threading.current_thread().name)
        if not self.go.wait(10):
            raise TimeoutError
        return request, "named"


def test_a_layer_that_blocks_holds_up_nobody_else(serve):
    waits = Waits()
    transport = [behind(waits), TCP("127.0.0.1", 0)]
    served = serve(stream_handler(handle_address), transport=transport, dispatcher=Trio())
    client = served.client()
    with connect(served.server.addresses[1], "stream", 10) as other:
        assert rest_of(other) == b"127.0.0.1"
    waits.go.set()
    assert rest_of(client) == b"named"
    assert waits.threads == ["socketkit-trio-layer"]


def test_an_error_of_a_layer_that_blocks_ends_its_own_connection(serve):
    @attrs.frozen
    class Refuses:
        def wrap(self, request, client_address):
            raise ValueError("not this one")

    served = serve(Upper, transport=behind(Refuses()), dispatcher=Trio())
    for _ in range(2):
        assert served.client().recv(10) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"failed": 2}


def test_no_more_layers_block_at_once_than_there_are_workers(serve):
    @attrs.frozen
    class Counts:
        places: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(2))

        def wrap(self, request, client_address):
            if not self.places.acquire(blocking=False):
                raise OSError("more than two at once")
            request.recv(1)
            self.places.release()
            return request, "named"

    served = serve(stream_handler(handle_address), transport=behind(Counts()), dispatcher=Trio(workers=2))
    clients = [served.client() for _ in range(6)]
    for client in clients:
        client.sendall(b"x")
    assert [rest_of(client) for client in clients] == [b"named"] * 6


def test_what_a_layer_raises_for_the_process_ends_serving():
    @attrs.frozen
    class Ends:
        def wrap(self, request, client_address):
            raise SystemExit("a layer that ends the process")

    ended = []

    def run():
        try:
            server.serve_forever()
        except SystemExit as error:
            ended.append(str(error))

    with Server(behind(Ends()), Upper, dispatcher=Trio()) as server:
        serving = threading.Thread(target=run)
        serving.start()
        with connect(server.addresses[0], "stream", 10) as client:
            assert client.recv(10) == b""
        serving.join(10)
    assert ended == ["a layer that ends the process"]
    assert server.stats().active == 0


def test_a_handler_that_reads_from_no_socket_is_told(serve, caplog):
    class Odd:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            return getattr(self._sock, name)

    @attrs.frozen
    class Replaces:
        replaces_socket = True

        def wrap(self, request, client_address):
            return Odd(request), client_address

    served = serve(Upper, transport=behind(Replaces()), dispatcher=Trio())
    assert served.client().recv(10) == b""
    served.server.stop()
    assert "cannot read from a Odd" in caplog.text
