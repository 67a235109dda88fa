"""A transport that fails on order."""

import errno
import socket
import threading

import pytest

from socketkit import TCP, UDP, Layered, Server, StreamRequestHandler
from socketkit.testing import Delegate, Faults, FaultyTransport
from socketkit.testing.clients import ask, talk

ANYWHERE = TCP("127.0.0.1", 0)


class Upper(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())


def echo(request, client_address, server):
    request[1].sendto(request[0], client_address)


@pytest.fixture
def listener():
    opened = []

    def open_it(*outcomes):
        transport = FaultyTransport(ANYWHERE, outcomes)
        opened.append(transport.open())
        return transport.faults, opened[-1]

    yield open_it
    for each in opened:
        each.close()


def connected(listener):
    return socket.create_connection(listener.address)


def test_each_accept_does_what_the_queue_says_and_then_what_it_always_does(listener):
    faults, listener = listener(errno.EMFILE, ValueError("bad header"), KeyError)
    with pytest.raises(OSError, match="Too many open files") as caught:
        listener.accept()
    assert caught.value.errno == errno.EMFILE
    with pytest.raises(ValueError, match="bad header"):
        listener.accept()
    with pytest.raises(KeyError):
        listener.accept()
    with pytest.raises(BlockingIOError):
        listener.accept()
    with connected(listener) as client:
        connection, address = listener.accept()
        connection.close()
        assert address == client.getsockname()
    assert faults.waiting == ()


def test_it_says_what_it_has_delivered_and_what_is_to_come(listener):
    mistake = ValueError()
    faults, listener = listener(errno.ENFILE, mistake)
    for _ in range(2):
        assert faults.delivered + faults.waiting == (errno.ENFILE, mistake)
        with pytest.raises((OSError, ValueError)):
            listener.accept()
    assert repr(faults) == "<Faults 2 delivered, 0 waiting>"


def test_delegations_are_requests_that_were_accepted(listener):
    faults, listener = listener(Delegate(2), errno.EMFILE)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert faults.delivered == ()
        with connected(listener):
            listener.accept()[0].close()
    assert faults.delivered == (Delegate(2),)
    with pytest.raises(OSError, match="Too many"):
        listener.accept()


def test_threads_share_the_queue_and_each_outcome_happens_once():
    faults = Faults([KeyError] * 400)
    met, start = [], threading.Barrier(4)

    class NoListener:
        def accept(self):
            raise BlockingIOError

    def take():
        start.wait()
        for _ in range(150):
            try:
                faults.accept(NoListener())
            except (KeyError, BlockingIOError) as error:
                met.append(type(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met.count(KeyError) == 400
    assert met.count(BlockingIOError) == 200


def test_a_test_waits_for_what_was_delivered():
    faults = Faults([KeyError])
    assert not faults.wait(1, timeout=0.01)
    waited = []
    thread = threading.Thread(target=lambda: waited.append(faults.wait(1, timeout=10)))
    thread.start()
    with pytest.raises(KeyError):
        faults.accept(None)
    thread.join()
    assert waited == [True]


def test_a_server_lives_through_it_and_faults_can_come_while_it_serves():
    with Server(FaultyTransport(ANYWHERE, [errno.ECONNABORTED]), Upper).start() as server:
        [transport] = server.transports
        assert talk(server.addresses[0], b"one") == b"ONE"
        assert transport.faults.delivered == (errno.ECONNABORTED,)
        transport.faults.add(errno.EPROTO, errno.EPERM)
        assert talk(server.addresses[0], b"two") == b"TWO"
        assert transport.faults.wait(3, timeout=5)


def test_datagrams_too():
    with Server(FaultyTransport(UDP("127.0.0.1", 0), [errno.ECONNREFUSED]), echo).start() as server:
        assert ask(server.addresses[0], b"one") == b"one"
        assert server.transports[0].faults.delivered == (errno.ECONNREFUSED,)


def test_it_is_to_the_server_what_it_wraps():
    class Shout:
        def wrap(self, request, client_address):
            return request, client_address

    layered = Layered(ANYWHERE, Shout())
    transport = FaultyTransport(layered)
    for name in ("kind", "url", "requires", "layers"):
        assert getattr(transport, name) == getattr(layered, name)
    faults = Faults([errno.EMFILE])
    assert FaultyTransport(ANYWHERE, faults) == FaultyTransport(ANYWHERE, faults)
    with FaultyTransport(ANYWHERE).open().socket as opened:
        assert opened.getsockname()[0] == "127.0.0.1"
