"""Closing a connection whose client has sent more than was read: it still reads all that it was sent, and the end."""

import socket
from http.server import BaseHTTPRequestHandler

import pytest

from faults.lab import unacknowledged, within
from helpers import innards
from socketkit import TCP, ConversationHandler, Limits, Server, StreamRequestHandler, UnixStream
from socketkit._system import sockets as lingering
from socketkit._system.sockets import discard_unread
from socketkit.testing.clients import address

REPLY = "no, thank you\n" * 6000


class Quits(StreamRequestHandler):
    """Answers without having read."""

    def handle(self):
        self.wfile.write(REPLY.encode())


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("limits", [Limits(deny=["127.0.0.1"], reply=REPLY), Limits()], ids=["refused", "served"])
def test_the_whole_reply_and_its_end_are_read_whatever_was_sent(tmp_path, transport, limits):
    where = TCP("127.0.0.1", 0) if transport == "tcp" else UnixStream(str(tmp_path / "s"))
    if transport == "unix" and limits.deny:
        limits = Limits(overflow="reject", reply=REPLY, max_connections=1)
    with Server(where, Quits, limits=limits) as server, socket.socket(socket.AF_INET if transport == "tcp" else socket.AF_UNIX) as client:
        if limits.overflow == "reject":  # one that is in the books already
            innards.ledger(server).admit(object(), "")
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that most of the reply waits at the server's
        client.connect(address(server.urls[0]))
        client.sendall(bytes(40_000))
        assert transport == "unix" or within(5, lambda: not unacknowledged(client))
        server.start()
        assert within(5, lambda: server.stats().outcomes.get("finished" if limits.reply == "" else "refused"))
        assert client.makefile("rb").read() == REPLY.encode()


class Picky(Server):
    """Says why not, without having read."""

    def verify_request(self, request, client_address):
        request.sendall(REPLY.encode())
        return False


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "fork", "pool", "adaptive"])
@pytest.mark.parametrize("handler", [StreamRequestHandler, ConversationHandler])
def test_the_last_word_of_verify_request_is_read_whatever_was_sent(dispatcher, handler):
    with Picky(TCP("127.0.0.1", 0), handler, dispatcher=dispatcher) as server, socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(server.urls[0]))
        client.sendall(bytes(40_000))
        assert within(5, lambda: not unacknowledged(client))
        server.start()
        assert within(5, lambda: server.stats().outcomes.get("refused"))
        assert client.makefile("rb").read() == REPLY.encode()


class TooLarge(BaseHTTPRequestHandler):
    """Answers without having read the body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.send_response(413)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(REPLY.encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool", "adaptive"])
def test_an_http_client_whose_body_is_too_large_reads_the_whole_answer(dispatcher):
    with Server(TCP("127.0.0.1", 0), TooLarge, dispatcher=dispatcher) as server, socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(server.urls[0]))
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 40000\r\n\r\n" + bytes(40_000))
        assert within(5, lambda: not unacknowledged(client))
        server.start()
        assert within(5, lambda: server.stats().outcomes.get("finished"))
        head, body = client.makefile("rb").read().split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert body == REPLY.encode()


def test_it_does_not_wait_for_what_is_not_there(pair):
    one, other = pair
    discard_unread(one)
    other.sendall(b"some")
    discard_unread(one)
    other.sendall(b"more")
    assert one.recv(100) == b"more"
    other.close()
    discard_unread(one)
    assert one.recv(100) == b""


def test_no_more_is_thrown_away_than_a_bound(pair, monkeypatch):
    one, other = pair
    monkeypatch.setattr(lingering, "MOST_DISCARDED", 10_000)
    other.sendall(bytes(100_000))
    discard_unread(one)
    assert len(one.recv(100_000)) == 100_000 - len(lingering._SCRATCH)


@pytest.mark.parametrize("what", [object(), None, "text"])
def test_what_is_no_socket_is_left_alone(what):
    discard_unread(what)


def test_a_socket_that_is_closed_is_left_alone(pair):
    pair[0].close()
    discard_unread(pair[0])
