"""Connections inside the program: served under every dispatcher, reached by nobody else, ended cleanly."""

import os
import select
import socket
import threading

import pytest

from helpers import innards
from helpers.dispatchers import EVERY_IN_PLACE
from helpers.support import python, wait_until
from socketkit import TCP, Graceful, Layered, Limits, Memory, Server, StreamRequestHandler
from socketkit.composition import capabilities, config
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.seams import Connects


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def talk(client, data):
    with client:
        client.settimeout(10)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1000), b""))


@pytest.fixture
def listener():
    listener = Memory().open()
    yield listener
    listener.close()


@pytest.mark.parametrize(("url", "recipe"), [("memory://", Memory()), ("memory://a%2Fb", Memory("a/b")), ("memory://name", Memory("name"))])
def test_a_url_is_a_recipe(url, recipe):
    assert config.transport(url) == recipe
    assert config.transport(recipe.url) == recipe


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="name"):
        Memory(7)


def test_a_platform_that_cannot_pass_descriptors_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(capabilities.FEATURES, "descriptor passing", False)
    with pytest.raises(IncompatibleError, match="Memory needs descriptor passing"):
        Server(Memory(), Upper)


# --- serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", EVERY_IN_PLACE)
def test_a_program_connects_to_its_own_server_under_every_dispatcher(dispatcher):
    python(
        """
import os, signal, sys, threading
from socketkit import Server, StreamRequestHandler

class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

server = Server("memory://", Upper, dispatcher=sys.argv[1], lifecycle="graceful:10")
def use():
    for _ in range(20):
        with server.connect() as client:
            client.settimeout(10)
            client.sendall(b"hello\\n")
            assert client.recv(100) == b"HELLO\\n"
    for client in [server.connect() for _ in range(3)]:
        client.close()  # every handler sees the end of its client, in a forked process too
    server.stop(wait=False)
with server:
    thread = threading.Thread(target=use)
    thread.start()
    server.serve_forever()
thread.join()
stats = server.stats()
assert (stats.accepted, stats.active) == (23, 0), stats
assert set(stats.outcomes) <= {"finished", "aborted"}, stats
""",
        dispatcher,
    )


def test_all_workers_of_prefork_take_connections():
    python(
        """
import os, threading
from socketkit import Server

def who(request, client_address, server):
    request.sendall(b"%d" % os.getpid())
    request.recv(1)  # busy until its client leaves, so that another worker takes the next one

server = Server("memory://", who, dispatcher="prefork:3/sync", lifecycle="graceful:10")
def use():
    clients = [server.connect() for _ in range(3)]
    found.extend(int(client.recv(100)) for client in clients)
    for client in clients:
        client.close()
    server.stop(wait=False)
found = []
with server:
    thread = threading.Thread(target=use)
    thread.start()
    server.serve_forever()
thread.join()
assert len(set(found)) == 3 and os.getpid() not in found, found
"""
    )


def test_a_request_is_a_blocking_socket_that_programs_do_not_inherit(listener):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(3)
    try:
        with listener.connect(), listener.accept()[0] as request:
            assert (request.gettimeout(), request.family, request.get_inheritable()) == (None, socket.AF_UNIX, False)
    finally:
        socket.setdefaulttimeout(before)


def test_accept_never_blocks(listener):
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_layers_and_limits_apply():
    class Greet:
        def wrap(self, request, client_address):
            request.sendall(b"hello ")
            return request, client_address

    with Server(Layered(Memory(), Greet()), Upper, limits=Limits(allow_users=[os.geteuid()])).start() as server:
        assert talk(server.connect(), b"you\n") == b"hello YOU\n"
    with Server(Memory(), Upper, limits=Limits(allow_users=[os.geteuid() + 1])).start() as server:
        with server.connect() as client:
            client.settimeout(10)
            assert client.recv(1) == b""
    assert server.stats().outcomes == {"refused": 1}


def test_one_of_several_is_found_by_its_url():
    with Server([TCP("127.0.0.1", 0), Memory("a"), Memory("b")], Upper) as server:
        with server.connect("memory://b"):
            with pytest.raises(BlockingIOError):
                innards.listeners(server)[1].accept()
            innards.listeners(server)[2].accept()[0].close()
        with server.connect():
            innards.listeners(server)[1].accept()[0].close()
        with pytest.raises(ConfigError, match="has no transport memory://c to connect to; add it to its transports"):
            server.connect("memory://c")


def test_a_server_without_such_a_transport_says_what_to_add():
    with Server(TCP("127.0.0.1", 0), Upper) as server, pytest.raises(ConfigError, match="has no transport memory:// to connect to; add it"):
        server.connect()


def test_a_server_that_does_not_listen_refuses():
    server = Server(Memory(), Upper)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError, match=r"does not listen; call start\(\), or enter it with `with`"):
            server.connect()
        server.start().stop()


def test_no_other_program_can_find_it(listener):
    assert listener.address == ""
    assert not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_a_listener_has_the_power_to_connect(listener):
    power: Connects = listener
    power.connect().close()


# --- the queue and the end --------------------------------------------------------------------------------------------


def test_connections_wait_until_the_server_serves():
    with Server(Memory(), Upper) as server:
        clients = [server.connect() for _ in range(5)]
        server.start()
        assert [talk(client, b"%d a\n" % number) for number, client in enumerate(clients)] == [b"%d A\n" % number for number in range(5)]


def test_a_drain_serves_what_is_queued():
    entered, leave = threading.Event(), threading.Event()

    def held(request, client_address, server):
        entered.set()
        assert leave.wait(10)
        request.sendall(b"done")

    with Server(Memory(), held, dispatcher="sync", lifecycle=Graceful(drain=10)).start() as server:
        clients = [server.connect()]
        clients[0].sendall(b"x")
        assert entered.wait(10)
        clients += [server.connect() for _ in range(3)]
        server.stop(wait=False)
        leave.set()
        report = server.stop()
    for client in clients:
        with client:
            assert client.recv(10) == b"done"
    assert (report.finished, report.forced) == (4, 0)


def test_a_connection_that_was_never_served_is_ended_with_its_listener(listener):
    with listener.connect() as client:
        listener.close()
        client.settimeout(10)
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError, match="memory:// is closed; start its server first"):
        listener.connect()


def test_connecting_waits_while_the_queue_is_full(listener):
    clients = []
    thread = threading.Thread(target=lambda: clients.extend(listener.connect() for _ in range(400)))
    thread.start()
    accepted = []
    while len(accepted) < 400:
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:
            assert thread.is_alive() or len(clients) == 400
    thread.join()
    for number, (client, request) in enumerate(zip(clients, accepted, strict=True)):
        client.sendall(b"%d" % number)
        assert request.recv(10) == b"%d" % number
        client.close()
        request.close()


def test_closing_ends_a_connect_that_waits(listener):
    refused = threading.Event()
    made = []

    def connect():
        try:
            while True:
                made.append(listener.connect())
        except ConnectionRefusedError:
            refused.set()

    thread = threading.Thread(target=connect)
    thread.start()
    wait_until(lambda: not select.select([], [listener._outbox], [], 0)[1])  # no more fit in
    listener.close()
    assert refused.wait(10)
    thread.join()
    for client in made:
        client.close()


def test_without_descriptors_the_error_is_the_one_of_accept():
    python(
        """
import errno, os, resource
from socketkit import Memory

listener = Memory().open()
clients = [listener.connect() for _ in range(2)]
highest = max(map(int, os.listdir("/proc/self/fd")))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
held = []
resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    listener.accept()
except OSError as error:
    assert error.errno == errno.EMFILE, error
else:
    raise AssertionError
assert clients[0].recv(1) == b""
os.close(held.pop())
listener.accept()[0].close()
"""
    )
