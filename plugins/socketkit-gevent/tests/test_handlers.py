"""Unmodified handlers run on greenlets: many at once, in one thread, with nothing patched."""

from __future__ import annotations

import contextlib
import contextvars
import http.client
import http.server
import socket
import subprocess
import sys
import threading

import gevent
import gevent.monkey
import pytest
from socketkit_gevent import Gevent, socketkit_dispatchers

from socketkit import DatagramRequestHandler, Limits, Server, StreamRequestHandler
from socketkit.errors import ConfigError
from socketkit.testing.clients import ask, talk


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class Greeting(StreamRequestHandler):
    """Sends a greeting first, so that a client knows when its handler runs."""

    def handle(self):
        self.wfile.write(b"hello\n")
        self.wfile.write(self.rfile.readline())


@contextlib.contextmanager
def serving(handler, url="tcp://127.0.0.1:0", recipe=None, **options):
    server = Server(url, handler, dispatcher=recipe or Gevent(), **options).start()
    try:
        yield server
    finally:
        server.stop(drain=0)


@contextlib.contextmanager
def clients(server, count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(count)]


def test_two_hundred_handlers_wait_at_once_in_one_thread():
    seen, before = set(), threading.active_count()

    class Seen(Greeting):
        def handle(self):
            seen.add((threading.get_ident(), threading.active_count()))
            super().handle()

    with serving(Seen) as server, clients(server, 200) as everyone:
        for client in everyone:
            assert client.recv(100) == b"hello\n"  # all handlers wait for a line before the first gets one
        assert server.stats().active == 200
        for number, client in enumerate(everyone):
            client.sendall(b"%d\n" % number)
        assert [client.recv(100) for client in everyone] == [b"%d\n" % number for number in range(200)]
    assert len({thread for thread, _ in seen}) == 1
    assert max(count for _, count in seen) == before + 2  # the serving thread and, once it runs, the timer's


def test_nothing_is_patched():
    plain = socket.socket
    with serving(Upper) as server:
        assert talk(server.addresses[0], b"x\n") == b"X\n"
        assert socket.socket is plain
        for name in ("socket", "select", "threading", "time", "ssl", "os", "subprocess", "signal"):
            assert not gevent.monkey.is_module_patched(name)


def test_a_stream_handler_reads_until_the_end():
    with serving(Upper) as server:
        assert talk(server.addresses[0], b"one\ntwo\n" * 5000) == b"ONE\nTWO\n" * 5000
        assert talk(server.addresses[0], b"again\n") == b"AGAIN\n"


def test_a_unix_stream_is_served(tmp_path):
    with serving(Upper, f"unix://{tmp_path}/s") as server:
        assert talk(f"{tmp_path}/s", b"x\n") == b"X\n"
        assert server.stats().outcomes in ({}, {"finished": 1})


def test_a_datagram_handler_replies():
    with serving(UpperDatagram, "udp://127.0.0.1:0") as server:
        for word in (b"one", b"two", b"three"):
            assert ask(server.addresses[0], word) == word.upper()


def test_streams_and_datagrams_are_served_side_by_side():
    class Either:
        def __init__(self, request, client_address, server):
            (UpperDatagram if isinstance(request, tuple) else Upper)(request, client_address, server)

    with serving(Either, ["udp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://127.0.0.1:0"]) as server:
        first, second, stream = server.addresses
        assert (ask(first, b"a"), ask(second, b"b"), talk(stream, b"c\n")) == (b"A", b"B", b"C\n")


def test_many_greenlets_wait_to_answer_on_one_socket_and_lose_nothing(tmp_path):
    number = 2000  # more than fit into the accept queue
    running = []

    class Flood(DatagramRequestHandler):
        def handle(self):
            running.append(self)
            for each in range(number):
                self.socket.sendto(b"%d" % each, self.client_address)
            running.remove(self)

    class Either:
        def __init__(self, request, client_address, server):
            (Flood if isinstance(request, tuple) else Upper)(request, client_address, server)

    with serving(Either, [f"unix-dgram://{tmp_path}/server", "tcp://127.0.0.1:0"]) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(3)]
        for name, peer in enumerate(peers):
            peer.settimeout(10)
            peer.bind(f"{tmp_path}/{name}")
            peer.sendto(b"flood", f"{tmp_path}/server")
        for _ in range(3):
            assert talk(server.addresses[1], b"x\n") == b"X\n"  # served while the others wait for their peers to read
        assert len(running) == 3
        for peer in peers:
            assert [peer.recv(100) for _ in range(number)] == [b"%d" % each for each in range(number)]


RECEIVE = {
    "recv": lambda request: request.recv(100),
    "recv_into": lambda request: _filled(request.recv_into),
    "recvfrom": lambda request: request.recvfrom(100)[0],
    "recvfrom_into": lambda request: _filled(lambda buffer: request.recvfrom_into(buffer)[0]),
    "recvmsg": lambda request: request.recvmsg(100)[0],
    "recvmsg_into": lambda request: _filled(lambda buffer: request.recvmsg_into([buffer])[0]),
    "makefile": lambda request: request.makefile("rb").readline(),
}
MUCH = 10 << 20
SEND = {
    "sendall": lambda request, data: request.sendall(data),
    "send": lambda request, data: _in_parts(request.send, data),
    "sendto": lambda request, data: _in_parts(lambda part: request.sendto(part, 0, request.getpeername()), data),
    "sendmsg": lambda request, data: _in_parts(lambda part: request.sendmsg([part]), data),
    "makefile": lambda request, data: request.makefile("wb").write(data),
}


def _filled(receive):
    buffer = bytearray(100)
    return bytes(buffer[: receive(buffer)])


def _in_parts(send, data):
    rest = memoryview(data)
    while rest:
        rest = rest[send(rest) :]


@pytest.mark.parametrize("call", RECEIVE)
def test_while_one_handler_waits_to_receive_others_are_served(call):
    def receive(request, client_address, server):
        request.sendall(RECEIVE[call](request).upper())

    with serving(receive) as server, clients(server, 1) as (waits,):
        assert talk(server.addresses[0], b"x\n") == b"X\n"
        waits.sendall(b"y\n")
        assert waits.recv(100) == b"Y\n"


@pytest.mark.parametrize("call", SEND)
def test_while_one_handler_waits_to_send_others_are_served(call):
    def send(request, client_address, server):
        if request.recv(100) == b"much":
            SEND[call](request, bytes(MUCH))

    with serving(send) as server, clients(server, 1) as (waits,):
        waits.sendall(b"much")
        assert waits.recv(1) == bytes(1)
        assert talk(server.addresses[0], b"x") == b""
        assert len(waits.makefile("rb").read()) == MUCH - 1


@pytest.mark.parametrize("call", SEND)
def test_a_client_that_takes_nothing_is_given_up_after_the_limit_for_it(call):
    def send(request, client_address, server):
        request.recv(100)
        SEND[call](request, bytes(MUCH))

    with serving(send, limits=Limits(write_stall=0.2)) as server, clients(server, 1) as (stalls,):
        stalls.sendall(b"much")
        assert server.stop(drain=20).forced == 0
        assert server.stats().outcomes == {"timed out": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="green descriptors block on Linux only")
@pytest.mark.parametrize("dispatcher", ["thread", Gevent()])
@pytest.mark.parametrize("copy", [False, True])
def test_a_child_process_that_is_given_the_connection_sends_all(dispatcher, copy):
    program = f"import os, sys; assert os.get_blocking(1); sys.stdout.buffer.write(bytes({MUCH}))"

    def give(request, client_address, server):
        given = request.dup() if copy else request
        subprocess.run([sys.executable, "-c", program], stdout=given, check=True)
        given.close()

    with serving(give, recipe=dispatcher) as server:
        assert len(talk(server.addresses[0], b"")) == MUCH
        assert server.stop().forced == 0
        assert server.stats().outcomes == {"finished": 1}


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).upper()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_the_handlers_of_http_server_keep_connections_alive():
    with serving(Pages) as server, contextlib.ExitStack() as stack:
        everyone = [http.client.HTTPConnection(*server.addresses[0], timeout=10) for _ in range(20)]
        for client in everyone:
            stack.callback(client.close)
        for turn in range(3):
            for number, client in enumerate(everyone):
                client.request("POST", "/", f"page {number}.{turn}")
            assert [client.getresponse().read() for client in everyone] == [f"PAGE {number}.{turn}".encode() for number in range(20)]
        assert server.stats().accepted == 20


def test_a_handlers_timeout_ends_its_wait():
    class Patient(Upper):
        timeout = 0.05

    with serving(Patient) as server, clients(server, 1) as (silent,):
        assert silent.recv(100) == b""


def test_a_timeout_that_the_server_set_is_kept():
    class Sets(Server):
        def get_request(self):
            request, client_address = super().get_request()
            request.settimeout(0.05)
            return request, client_address

    caught = []

    def wait(request, client_address, server):
        try:
            request.recv(1)
        except TimeoutError as error:
            caught.append(error)

    server = Sets("tcp://127.0.0.1:0", wait, dispatcher=Gevent()).start()
    with clients(server, 1) as (silent,):
        assert silent.recv(100) == b""
    server.stop()
    assert len(caught) == 1


def test_each_request_has_context_variables_of_its_own():
    variable = contextvars.ContextVar("variable", default=0)

    def count(request, client_address, server):
        variable.set(variable.get() + 1)
        request.sendall(b"%d" % variable.get())

    with serving(count) as server:
        assert [talk(server.addresses[0], b"") for _ in range(3)] == [b"1", b"1", b"1"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, gevent.GreenletExit, BaseException])
def test_what_a_handler_raises_costs_its_own_request_only(error):
    class Raises(Greeting):
        def handle(self):
            self.wfile.write(b"hello\n")
            if self.rfile.readline() == b"raise\n":
                raise error
            self.wfile.write(b"well\n")

    with serving(Raises) as server, clients(server, 2) as (bad, good):
        assert (bad.recv(100), good.recv(100)) == (b"hello\n", b"hello\n")
        bad.sendall(b"raise\n")
        assert bad.recv(100) == b""
        good.sendall(b"go on\n")
        assert good.recv(100) == b"well\n"
        assert good.recv(100) == b""
        assert talk(server.addresses[0], b"new\n") == b"hello\nwell\n"
        server.stop()
        stats = server.stats()
        assert (stats.accepted, stats.active, dict(stats.outcomes)) == (3, 0, {"failed": 1, "finished": 2})


def test_one_request_is_handled_without_a_loop():
    with Server("tcp://127.0.0.1:0", Upper, dispatcher=Gevent()) as server, clients(server, 2) as everyone:
        for client in everyone:
            client.sendall(b"x\n")
            client.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert client.recv(100) == b"X\n"
        assert server.stats().outcomes == {"finished": 2}


def test_one_datagram_is_handled_without_a_loop():
    server = Server("udp://127.0.0.1:0", UpperDatagram, dispatcher=Gevent())
    with server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"x", server.addresses[0])
        server.handle_request()
        assert client.recv(100) == b"X"


def test_a_request_that_cannot_be_made_green_is_passed_on_with_one_warning(caplog):
    class Wrapped(socket.socket):
        pass

    class Wraps(Server):
        def get_request(self):
            request, client_address = super().get_request()
            return Wrapped(fileno=request.detach()), client_address

    seen = []

    def note(request, client_address, server):
        seen.append(type(request))

    with Wraps("tcp://127.0.0.1:0", note, dispatcher=Gevent()) as server:
        server.start()
        assert (talk(server.addresses[0], b""), talk(server.addresses[0], b"")) == (b"", b"")
        server.stop()
    assert seen == [Wrapped, Wrapped]
    assert [record.message for record in caplog.records if record.name == "socketkit_gevent"] == [
        "a Wrapped cannot be made green: while a handler waits for it, all others stand still"
    ]


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_is_a_value_and_offered_by_its_name():
    assert Gevent() == Gevent(10_000) != Gevent(None)
    assert repr(Gevent(5)) == "Gevent(max_greenlets=5)"
    assert socketkit_dispatchers() == {"gevent": Gevent}


@pytest.mark.parametrize("bound", [0, -1, True, 1.5, "5"])
def test_a_bound_that_is_none_is_refused_with_the_remedy(bound):
    with pytest.raises((ValueError, ConfigError), match="max_greenlets must be a whole number of at least 1, or nothing for no bound"):
        Gevent(bound)
