"""Stopping and surviving: what the classic classes promise beyond the standard library's, in depth."""

import os
import signal
import socket
import statistics
import sys
import threading
import time

import pytest

from compat.classic import LOCAL, WAIT, asleep, connection, looping, program, serving, talk
from socketkit import socketserver
from socketkit.testing.programs import Program, with_path


class Upper(socketserver.StreamRequestHandler):
    """Answers a line with its capitals."""

    def handle(self):
        self.wfile.write(self.rfile.readline().upper())


def within(seconds, run):
    """Return whether the call returns in time."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


# --- shutdown -------------------------------------------------------------------------------------------------------------


def test_a_stop_that_comes_first_ends_one_loop_and_only_one():
    with socketserver.TCPServer(LOCAL, Upper) as server:
        server.shutdown()
        server.shutdown()
        assert within(WAIT, server.serve_forever)
        with looping(server):
            assert talk(server, b"x\n") == b"X\n"


def test_a_stop_that_races_with_the_start_always_ends_the_loop():
    with socketserver.TCPServer(LOCAL, Upper) as server:
        for _ in range(200):
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            server.shutdown()
            loop.join(WAIT)
            assert not loop.is_alive()


def test_a_stop_after_a_failed_start_returns():
    class Server(socketserver.TCPServer):
        def fileno(self):
            raise ZeroDivisionError

    with Server(LOCAL, Upper) as server:
        with pytest.raises(ZeroDivisionError):
            server.serve_forever()
        assert within(WAIT, server.shutdown)


def test_stops_from_many_threads_all_return():
    with socketserver.ThreadingTCPServer(LOCAL, Upper) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        assert talk(server, b"x\n") == b"X\n"
        stops = [threading.Thread(target=server.shutdown) for _ in range(20)]
        for stop in stops:
            stop.start()
        for thread in (*stops, loop):
            thread.join(WAIT)
            assert not thread.is_alive()


@pytest.mark.parametrize("server_class", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_a_hundred_stops_take_no_time(server_class):
    with server_class(LOCAL, Upper) as server:
        taken = []
        for _ in range(100):
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            assert talk(server, b"x\n") == b"X\n"  # it serves
            start = time.perf_counter()
            server.shutdown()
            taken.append(time.perf_counter() - start)
            loop.join(WAIT)
    assert statistics.median(taken) < 0.02


@pytest.mark.parametrize("server_class", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_a_handler_stops_its_server_and_its_reply_still_arrives(server_class):
    class Stop(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.shutdown()
            self.wfile.write(b"stopped")

    with server_class(LOCAL, Stop) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        assert talk(server, b"") == b"stopped"
        loop.join(WAIT)
        assert not loop.is_alive()


@pytest.mark.parametrize("hook", ["service_actions", "verify_request", "get_request", "close_request", "handle_error"])
def test_any_hook_of_the_serving_thread_stops_it(hook):
    def stopping(self, *arguments):
        self.shutdown()
        return getattr(super(server_class, self), hook)(*arguments)

    def handler(*_):
        if hook == "handle_error":
            raise ZeroDivisionError

    server_class = type("Server", (socketserver.TCPServer,), {hook: stopping})
    with server_class(LOCAL, handler) as server, connection(server):
        assert within(WAIT, lambda: server.serve_forever(0.01))


def test_a_request_that_was_taken_before_the_stop_is_served():
    class Server(socketserver.TCPServer):
        def get_request(self):
            taken = super().get_request()
            self.shutdown()
            return taken

    with Server(LOCAL, Upper) as server, connection(server) as client:
        client.sendall(b"x\n")
        assert within(WAIT, server.serve_forever)
        assert client.recv(10) == b"X\n"


def test_no_request_is_taken_after_the_stop():
    class Server(socketserver.TCPServer):
        taken = 0

        def get_request(self):
            self.taken += 1
            self.shutdown()
            return super().get_request()

    with Server(LOCAL, Upper) as server, connection(server) as first, connection(server) as second:
        first.sendall(b"x\n")
        second.sendall(b"y\n")
        assert within(WAIT, server.serve_forever)
        assert server.taken == 1
        server.handle_request()  # the other is still in the queue
        assert {first.recv(10), second.recv(10)} == {b"X\n", b"Y\n"}


def test_a_stop_is_immediate_although_a_subclass_has_the_flag_for_itself():
    class Server(socketserver.TCPServer):
        _BaseServer__shutdown_request = False

    with Server(LOCAL, Upper) as server:
        loop = threading.Thread(target=server.serve_forever, args=(60,), daemon=True)
        loop.start()
        assert talk(server, b"x\n") == b"X\n"
        assert asleep(loop)
        assert within(WAIT, server.shutdown)
        loop.join(WAIT)


SIGNALS = """
import signal, socketserver

server = socketserver.{kind}TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
with server:
    print("ready", server.server_address[1])
    server.serve_forever(60)
print("stopped")
"""


@pytest.mark.parametrize("kind", ["", "Threading", "Forking"])
def test_a_signal_handler_stops_the_server_that_the_main_thread_serves(kind):
    drop_in = "import sys, socketkit.socketserver; sys.modules['socketserver'] = socketkit.socketserver\n"
    with Program.python("-c", drop_in + SIGNALS.format(kind=kind), env=with_path()) as server:
        [ready] = server.line(r"^ready (\d+)")
        with socket.create_connection(("127.0.0.1", int(ready[1])), 10) as client:
            assert client.recv(1) == b""
        assert server.stop(signal.SIGTERM, timeout=10) == 0
        server.line("^stopped")


# --- closing --------------------------------------------------------------------------------------------------------------


class Counting(socketserver.TCPServer):
    """Counts its attempts to take a request."""

    attempts = 0

    def get_request(self):
        self.attempts += 1
        return super().get_request()


@pytest.mark.parametrize("poll_interval", [0.01, 60])
def test_a_server_closed_by_another_thread_ends_its_loop_without_spinning(poll_interval):
    server = Counting(LOCAL, Upper)
    loop = threading.Thread(target=server.serve_forever, args=(poll_interval,))
    loop.start()
    assert talk(server, b"x\n") == b"X\n"
    server.server_close()
    loop.join(WAIT)
    assert not loop.is_alive()
    assert server.attempts <= 2
    server.shutdown()


@pytest.mark.parametrize("threads", [False, True])
def test_a_server_closed_by_its_handler_ends_its_loop(threads):
    class Close(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.server_close()
            self.wfile.write(b"closed")

    server_class = type("Server", (socketserver.ThreadingMixIn, Counting) if threads else (Counting,), {})
    server = server_class(LOCAL, Close)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    assert talk(server, b"") == b"closed"
    loop.join(WAIT)
    assert not loop.is_alive()
    assert server.attempts <= 2
    server.server_close()


def test_a_socket_closed_behind_the_servers_back_ends_a_loop_that_looks_at_it():
    class Server(Counting):
        def service_actions(self):
            pass  # overridden, so that the loop takes turns

    server = Server(LOCAL, Upper)
    loop = threading.Thread(target=server.serve_forever, args=(0.01,))
    loop.start()
    assert talk(server, b"x\n") == b"X\n"
    server.socket.close()
    loop.join(WAIT)
    assert not loop.is_alive()
    assert server.attempts <= 3


def test_a_socket_closed_behind_the_servers_back_does_not_keep_shutdown_from_returning():
    server = Counting(LOCAL, Upper)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    assert talk(server, b"x\n") == b"X\n"
    server.socket.close()
    assert within(WAIT, server.shutdown)
    loop.join(WAIT)
    assert server.attempts <= 2


def test_closing_wakes_a_loop_whatever_the_descriptor_is_used_for_next():
    for _ in range(20):
        server = Counting(LOCAL, Upper)
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        assert talk(server, b"x\n") == b"X\n"
        number = server.fileno()
        server.server_close()
        ours, theirs = socket.socketpair()  # one of which most likely gets the number
        with ours, theirs:
            theirs.send(b"not for the server")
            loop.join(WAIT)
            assert not loop.is_alive()
            assert ours.recv(100) == b"not for the server"
        assert number >= 0


# --- trouble --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectionAbortedError, TimeoutError, PermissionError, BlockingIOError, OSError], ids=str)
def test_one_failed_attempt_to_take_a_request_is_passed_over(error):
    class Server(socketserver.TCPServer):
        failed = False

        def get_request(self):
            if not self.failed:
                self.failed = True
                raise error(*{PermissionError: (1, "filtered")}.get(error, ("for once",)))
            return super().get_request()

    server = Server(LOCAL, Upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
    assert server.failed


def test_refused_threads_cost_only_their_own_requests(monkeypatch):
    start, refused = threading.Thread.start, []

    def sometimes(thread):
        if "process_request_thread" in thread.name and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    class Server(socketserver.ThreadingTCPServer):
        errors = 0

        def handle_error(self, request, client_address):
            assert isinstance(sys.exc_info()[1], RuntimeError)
            self.errors += 1

    server = Server(LOCAL, Upper)
    monkeypatch.setattr(threading.Thread, "start", sometimes)
    with serving(server):
        replies = []
        for _ in range(5):
            with connection(server) as client:
                try:
                    client.sendall(b"x\n")
                    replies.append(client.recv(10))
                except ConnectionError:
                    replies.append(b"")  # closed with what was sent unread
    assert replies == [b"", b"", b"", b"X\n", b"X\n"]
    assert server.errors == len(refused) == 3


def test_a_refused_fork_costs_only_its_own_request():
    source = """
import os, socketserver
from compat.classic import LOCAL, serving, talk

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Server(socketserver.ForkingTCPServer):
    def handle_error(self, request, client_address):
        print(type(sys.exc_info()[1]).__name__)

def refuse():
    os.fork = fork
    raise BlockingIOError(11, "no more processes")

fork, os.fork = os.fork, refuse
server = Server(LOCAL, Upper)
with serving(server):
    try:
        first = talk(server, b"x\\n")
    except ConnectionError:
        first = b""
    print(first, talk(server, b"x\\n"))
"""
    assert program(source) == "BlockingIOError\nb'' b'X\\n'\n"


def test_the_server_gives_way_to_new_children_when_one_of_the_bound_ends():
    source = """
import os, socketserver
from compat.classic import LOCAL, connection, serving

class Say(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        self.rfile.readline()

class Server(socketserver.ForkingTCPServer):
    max_children = 2
    most = 0

    def service_actions(self):
        self.most = max(self.most, len(self.active_children or ()))
        super().service_actions()

server = Server(LOCAL, Say)
with serving(server):
    with connection(server) as a, connection(server) as b, connection(server) as c:
        one, two, three = (each.makefile("rb") for each in (a, b, c))
        one.readline(), two.readline()
        a.sendall(b"\\n")
        print(three.readline() != b"")
        b.sendall(b"\\n")
        c.sendall(b"\\n")
print(server.most, server.active_children)
"""
    assert program(source) == "True\n2 set()\n"


def test_programs_started_by_the_process_keep_their_exit_codes_while_children_come_and_go():
    source = """
import socketserver, subprocess, threading
from compat.classic import LOCAL, serving, talk

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

server = socketserver.ForkingTCPServer(LOCAL, Upper)
server.max_children = 2
with serving(server):
    for _ in range(5):
        other = subprocess.Popen([sys.executable, "-S", "-E", "-c", "raise SystemExit(7)"])
        for _ in range(4):
            assert talk(server, b"x\\n") == b"X\\n"
        print(other.wait(), end=" ")
"""
    assert program(source) == "7 7 7 7 7 "


def test_a_child_that_dies_or_is_killed_leaves_the_server_going():
    source = """
import os, signal, socketserver
from compat.classic import LOCAL, serving, talk

class Die(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"kill\\n":
            os.kill(os.getpid(), signal.SIGKILL)
        elif line == b"exit\\n":
            raise SystemExit(3)
        self.wfile.write(line.upper())

server = socketserver.ForkingTCPServer(LOCAL, Die)
with serving(server):
    print([talk(server, line) for line in (b"kill\\n", b"exit\\n", b"on\\n")])
print(server.active_children)
"""
    assert program(source) == "[b'', b'', b'ON\\n']\nset()\n"


def test_a_standard_error_that_is_none_is_no_reason_to_stop(capfd):
    class Fail(socketserver.BaseRequestHandler):
        def handle(self):
            raise ZeroDivisionError

    server = socketserver.TCPServer(LOCAL, Fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        with serving(server):
            assert [talk(server, b""), talk(server, b"")] == [b"", b""]


def test_serving_and_stopping_leaves_no_descriptor_open():
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if descriptors is None:
        pytest.skip("counts descriptors in /proc")
    server = socketserver.ThreadingTCPServer(LOCAL, Upper)
    for _ in range(10):
        with looping(server):
            assert talk(server, b"x\n") == b"X\n"
    server.server_close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
