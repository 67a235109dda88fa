"""A layer that answers its client itself: the connection ends as finished, and no handler sees it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import ClassVar

import attrs
import pytest

from socketkit import TCP, TLS, UDP, AsyncStreamRequestHandler, BaseRequestHandler, DatagramRequestHandler, Layered, Server
from socketkit.errors import IncompatibleError
from socketkit.seams import Answered

LATE = 20


@attrs.frozen
class Healthy:
    """Answers each client with a word, before it says anything."""

    answers: ClassVar[bool] = True

    def wrap(self, request, client_address):
        request.sendall(b"healthy\n")
        raise Answered


@attrs.frozen
class HealthyOnRequest:
    """The same for a client that sends something first, without a thread."""

    answers: ClassVar[bool] = True

    def begin(self, request, client_address):
        return _Waiting(request)


@attrs.define
class _Waiting:
    request: socket.socket
    sends: ClassVar[bool] = False

    def go_on(self):
        with contextlib.suppress(BlockingIOError):
            self.request.recv(100)
            self.request.sendall(b"healthy\n")
            raise Answered


class Passes:
    """Lets every client pass."""

    def wrap(self, request, client_address):
        return request, client_address


class Never(BaseRequestHandler):
    def handle(self):
        raise AssertionError("the handler ran")


class Failures:
    def __init__(self):
        self.failures = []

    def request_failed(self, server, client_address, error):
        self.failures.append(error)


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool:2", "adaptive", "asyncio"])
@pytest.mark.parametrize("layer", [Healthy(), HealthyOnRequest()], ids=["wrap", "begin"])
def test_an_answered_connection_is_finished(layer, dispatcher):
    failures = Failures()
    server = Server(Layered(TCP("127.0.0.1", 0), layer), Never, dispatcher=dispatcher, observers=[failures]).start()
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(b"?")
        with client.makefile("rb") as answer:
            assert answer.read() == b"healthy\n"
    server.stop()
    assert server.stats().outcomes == {"finished": 1}
    assert failures.failures == []


def test_a_server_of_datagrams_can_have_a_listener_that_answers():
    class Echo(DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.read())

    server = Server([UDP("127.0.0.1", 0), Layered(TCP("127.0.0.1", 0), Healthy())], Echo).start()
    with socket.create_connection(server.addresses[1], timeout=LATE) as client, client.makefile("rb") as answer:
        assert answer.read() == b"healthy\n"
    server.stop()
    with pytest.raises(IncompatibleError, match="accepts only datagram requests"):
        Server(Layered(TCP("127.0.0.1", 0)), Echo)


def test_a_server_of_asynchronous_handlers_can_have_one_behind_tls():
    class Awaits(AsyncStreamRequestHandler):
        pass

    tls = TLS(context=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    Server(Layered(TCP("127.0.0.1", 0), tls, HealthyOnRequest()), Awaits, dispatcher="asyncio")
    with pytest.raises(IncompatibleError, match="cannot follow TLS"):
        Server(Layered(TCP("127.0.0.1", 0), tls, Passes()), Awaits, dispatcher="asyncio")


def test_no_layer_can_follow_one_that_answers(tmp_path):
    with pytest.raises(IncompatibleError, match="TLS is after Healthy, which answers every client itself; put Healthy last"):
        Server(Layered(TCP("127.0.0.1", 0), Healthy(), TLS(str(tmp_path / "cert.pem"))), Never)
