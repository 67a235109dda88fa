"""A proxy that spoils connections on order."""

import contextlib
import errno
import os
import socket
import threading
import time

import pytest

from socketkit import TCP, Server, StreamRequestHandler, UnixStream
from socketkit.testing import Blackhole, ChaosProxy, Cut, Delay, Drip, HalfClose, Reset
from socketkit.testing.clients import talk

TEXT = b"0123456789" * 10_000


class Echo(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())


class AtOnce(StreamRequestHandler):
    """Answers each byte as it comes, and says how its connection ended."""

    ends: list

    def handle(self):
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
            self.ends.append("end")
        except OSError as error:
            self.ends.append(errno.errorcode[error.errno])
        self.server.stop(wait=False)


@pytest.fixture
def serve(tmp_path_factory):
    with contextlib.ExitStack() as stack:

        def start(handler=Echo, transport=None):
            server = stack.enter_context(Server(transport or TCP("127.0.0.1", 0), handler, dispatcher="thread").start())
            return server.addresses[0], server

        yield start


def connected(proxy):
    client = socket.create_connection(proxy.address)
    client.settimeout(10)
    return client


def read_to_the_end(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_without_a_spoiler_nothing_is_spoiled(serve):
    target, _ = serve()
    with ChaosProxy(target) as proxy:
        assert [talk(proxy.address, TEXT) for _ in range(5)] == [TEXT] * 5
        assert proxy.accepted == 5
        assert proxy.address[0] == "127.0.0.1"


def test_it_carries_more_than_fits_into_any_buffer_in_both_directions(serve):
    target, _ = serve(type("Both", (AtOnce,), {"ends": []}))
    much = os.urandom(8_000_000)
    with ChaosProxy(target) as proxy, connected(proxy) as client:
        writer = threading.Thread(target=lambda: (client.sendall(much), client.shutdown(socket.SHUT_WR)))
        writer.start()
        assert read_to_the_end(client) == much
        writer.join()


def test_unix_sockets_on_either_side(serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    target, _ = serve(transport=UnixStream(str(folder / "target")))
    with ChaosProxy(target, listen=str(folder / "proxy")) as proxy:
        assert talk(proxy.address, TEXT) == TEXT
    with ChaosProxy(target, Cut(at=3)) as proxy:
        assert talk(proxy.address, TEXT) == b"012"


def test_a_delay_delays(serve):
    target, _ = serve()
    with ChaosProxy(target, Delay(0.1), Delay(0.1, to="server")) as proxy:
        began = time.monotonic()
        assert talk(proxy.address, TEXT) == TEXT
        assert time.monotonic() - began >= 0.2


def test_a_drip_arrives_in_pieces(serve):
    target, _ = serve()
    with ChaosProxy(target, Drip(3, 0.02)) as proxy, connected(proxy) as client:
        began = time.monotonic()
        client.sendall(b"12345678")
        client.shutdown(socket.SHUT_WR)
        pieces = list(iter(lambda: client.recv(100), b""))
    assert b"".join(pieces) == b"12345678"
    assert max(map(len, pieces)) <= 6  # two may have come together on a slow machine
    assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize("at", [0, 1, 70_000])
def test_a_cut_ends_the_connection_after_so_many_bytes(serve, at):
    target, _ = serve()
    with ChaosProxy(target, Cut(at=at)) as proxy, connected(proxy) as client:
        with contextlib.suppress(OSError):  # cut before all was sent
            client.sendall(TEXT)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert read_to_the_end(client) == TEXT[:at]


@pytest.mark.parametrize(("to", "arrives"), [("client", b"01234"), ("server", b"")])
def test_a_reset_resets_both_ends(serve, to, arrives):
    kind = type("Both", (AtOnce,), {"ends": []})
    target, server = serve(kind)
    with ChaosProxy(target, Reset(at=5, to=to)) as proxy, connected(proxy) as client:
        client.sendall(b"0123456789")
        received = []
        with pytest.raises(ConnectionResetError):
            received.extend(iter(lambda: client.recv(100), b""))
        assert b"".join(received) in {b"", arrives}  # a reset may overtake what was sent before it
    server.stop()
    assert kind.ends in (["ECONNRESET"], ["EPIPE"])


def test_a_half_close_ends_one_direction_only(serve):
    target, _ = serve()
    with ChaosProxy(target, HalfClose(at=4, to="server")) as proxy, connected(proxy) as client:
        client.sendall(TEXT)
        assert read_to_the_end(client) == b"0123"


def test_a_blackhole_swallows_nothing_and_fills_up(serve):
    target, server = serve()
    with ChaosProxy(target, Blackhole(to="server")) as proxy, connected(proxy) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            list(iter(lambda: client.send(TEXT), 0))
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert server.stop().forced + server.stats().outcomes["finished"] >= 1


def test_a_target_that_is_not_there_resets_its_clients(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        gone = sock.getsockname()
    for target in (gone, str(tmp_path_factory.mktemp("s") / "gone")):
        with ChaosProxy(target) as proxy, connected(proxy) as client, pytest.raises(ConnectionResetError):
            client.recv(1)


def test_closing_it_twice_and_under_way_leaves_nothing(serve):
    target, _ = serve()
    proxy = ChaosProxy(target, Delay(60))
    clients = [connected(proxy) for _ in range(5)]
    for client in clients:
        client.sendall(b"x")
    proxy.close()
    proxy.close()
    for client in clients:
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address)


def test_an_address_that_is_taken_leaves_nothing():
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(OSError, match="in use"):
        ChaosProxy(("127.0.0.1", 1), listen=sock.getsockname())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Delay(-1), "seconds must be 0 or more seconds, not -1"),
        (lambda: Drip(0), "size must be a whole number of at least 1, not 0"),
        (lambda: Cut(at="3"), "at must be a whole number of at least 0, not '3'"),
        (lambda: Cut(at=True), "at must be"),
        (lambda: Reset(to="both"), "'to' must be in"),
    ],
)
def test_a_spoiler_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
