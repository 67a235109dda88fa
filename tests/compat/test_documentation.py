"""The promises of the documentation of `socketserver`, one test each, kept by the standard library and by us."""

import io
import os
import re
import selectors
import signal
import socket
import sys
import threading

import pytest

from compat.classic import ENVIRONMENT, LOCAL, NEW, OLD, WAIT, ask, connection, example, looping, program, read, serving, talk
from socketkit.testing.programs import Program, run

BOTH = pytest.mark.parametrize("name", [OLD, NEW], ids=["stdlib", "socketkit"])


def recorder(base, *hooks):
    """Return a subclass whose instances note the calls of the hooks in the class's list `calls`."""

    def noting(hook):
        def method(self, *arguments, **options):
            calls.append(hook)
            return getattr(super(recording, self), hook)(*arguments, **options)

        return method

    calls = []
    recording = type("Recorder", (base,), {"calls": calls, **{hook: noting(hook) for hook in hooks}})
    return recording


def upper(library):
    """Return a handler that answers a line with its capitals."""

    class Upper(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    return Upper


def waiting(library):
    """Return a handler that says `b"in"` on its connection, and then waits for its class's event `go`."""

    class Waiting(library.BaseRequestHandler):
        go = threading.Event()

        def handle(self):
            self.request.sendall(b"in")
            assert self.go.wait(WAIT)

    return Waiting


# --- the concrete classes -------------------------------------------------------------------------------------------------


def test_tcp_server_gives_a_continuous_stream(library):
    class Count(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"%d" % len(self.rfile.read()))

    server = library.TCPServer(LOCAL, Count)
    with serving(server), connection(server) as client:
        for _ in range(3):
            client.sendall(bytes(40_000))
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b"120000"


def test_udp_server_gives_discrete_packets(library):
    class Count(library.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(b"%d" % len(self.rfile.read()))

    server = library.UDPServer(LOCAL, Count)
    with serving(server), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT)
        for size in (1, 20, 300):
            client.sendto(bytes(size), server.server_address)
        assert sorted(client.recv(100) for _ in range(3)) == [b"1", b"20", b"300"]


@pytest.mark.parametrize("bind_and_activate", [True, False])
@pytest.mark.parametrize("server_class", ["TCPServer", "UDPServer"])
def test_the_constructor_binds_and_activates_only_if_told_to(library, server_class, bind_and_activate):
    recording = recorder(getattr(library, server_class), "server_bind", "server_activate")
    with recording(LOCAL, None, bind_and_activate) as server:
        assert recording.calls == (["server_bind", "server_activate"] if bind_and_activate else [])
        assert (server.socket.getsockname()[1] != 0) is bind_and_activate


def test_binding_and_activating_is_the_default(library):
    with library.TCPServer(LOCAL, None) as server:
        assert server.socket.getsockname()[1] != 0


@pytest.mark.parametrize("server_class", ["UnixStreamServer", "UnixDatagramServer"])
def test_unix_classes_use_unix_sockets_and_the_same_parameters(library, server_class, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with getattr(library, server_class)("here", None, bind_and_activate=True) as server:
        assert server.socket.family == server.address_family == socket.AF_UNIX
        assert server.server_address == "here"


def test_unix_classes_are_absent_where_unix_sockets_are():
    source = "import socket; del socket.AF_UNIX; from socketkit import socketserver; print([n for n in dir(socketserver) if 'Unix' in n])"
    assert run(sys.executable, "-c", source, env=ENVIRONMENT).stdout.strip() == "[]"


def test_forking_classes_are_absent_where_fork_is():
    source = "import os; del os.fork; from socketkit import socketserver; print([n for n in dir(socketserver) if n.startswith('Forking')])"
    assert run(sys.executable, "-c", source, env=ENVIRONMENT).stdout.strip() == "[]"


def test_a_synchronous_server_completes_each_request_before_the_next_is_started(library):
    handler = waiting(library)
    server = recorder(library.TCPServer, "process_request", "shutdown_request")(LOCAL, handler)
    with serving(server), connection(server) as first, connection(server) as second:
        assert first.recv(2) == b"in"
        assert server.calls == ["process_request"]
        handler.go.set()
        assert read(second) == b"in"
    assert server.calls == ["process_request", "shutdown_request"] * 2


def test_a_threading_server_handles_requests_at_the_same_time(library):
    handler = waiting(library)
    server = library.ThreadingTCPServer(LOCAL, handler)
    with serving(server), connection(server) as first, connection(server) as second:
        assert first.recv(2) == second.recv(2) == b"in"
        handler.go.set()


@BOTH
def test_a_forking_server_handles_requests_at_the_same_time_in_processes_of_their_own(name):
    source = """
import os, socketserver
from compat.classic import LOCAL, connection, serving

class Ping(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        self.rfile.readline()

server = socketserver.ForkingTCPServer(LOCAL, Ping)
with serving(server), connection(server) as first, connection(server) as second:
    pids = [int(each.makefile("rb").readline()) for each in (first, second)]
    first.sendall(b"\\n")
    second.sendall(b"\\n")
assert len({os.getpid(), *pids}) == 3, pids
assert not server.active_children
print("ok")
"""
    assert program(source, library=name) == "ok\n"


@BOTH
def test_what_a_forked_handler_changes_does_not_reach_the_server(name):
    source = """
import socketserver
from compat.classic import LOCAL, serving, talk

seen = []

class Remember(socketserver.StreamRequestHandler):
    def handle(self):
        seen.append(self.rfile.readline())
        self.wfile.write(b"%d" % len(seen))

server = socketserver.ForkingTCPServer(LOCAL, Remember)
with serving(server):
    print(talk(server, b"a\\n"), talk(server, b"b\\n"), seen)
"""
    assert program(source, library=name) == "b'1' b'1' []\n"


@BOTH
def test_a_synchronous_handler_may_fork_by_itself(name):
    source = """
import os, socketserver
from compat.classic import LOCAL, serving, talk

class Fork(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        pid = os.fork()
        if not pid:
            self.wfile.write(line.upper())
            os._exit(0)
        os.waitpid(pid, 0)

server = socketserver.TCPServer(LOCAL, Fork)
with serving(server):
    print(talk(server, b"one\\n"), talk(server, b"two\\n"))
"""
    assert program(source, library=name) == "b'ONE\\n' b'TWO\\n'\n"


# --- making a server ------------------------------------------------------------------------------------------------------


def test_handle_request_handles_one_and_serve_forever_many(library):
    handler = upper(library)
    with library.TCPServer(LOCAL, handler) as server:
        with connection(server) as client:
            client.sendall(b"one\n")
            server.handle_request()
            assert read(client) == b"ONE\n"
        with looping(server):
            assert [talk(server, b"two\n"), talk(server, b"three\n")] == [b"TWO\n", b"THREE\n"]


def test_leaving_the_with_statement_is_server_close(library):
    recording = recorder(library.TCPServer, "server_close")
    with recording(LOCAL, None) as server:
        assert isinstance(server, recording)
        assert recording.calls == []
    assert recording.calls == ["server_close"]
    assert server.socket.fileno() == -1


def test_an_exception_passes_through_the_with_statement(library):
    with pytest.raises(ZeroDivisionError), library.TCPServer(LOCAL, None) as server:
        raise ZeroDivisionError
    assert server.socket.fileno() == -1


@BOTH
def test_the_program_goes_on_until_all_threads_have_ended_unless_they_are_daemons(name):
    source = """
import socket, socketserver, threading
from compat.classic import LOCAL

class Slow(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"in\\n")
        threading.Event().wait() if self.server.daemon_threads else threading.main_thread().join()
        print("handler ended after the main thread", flush=True)

server = socketserver.ThreadingTCPServer(LOCAL, Slow)
server.daemon_threads = bool(sys.argv[1])
client = socket.create_connection(server.server_address)
server.handle_request()
client.recv(3)
"""
    assert program(source, "", library=name) == "handler ended after the main thread\n"
    assert program(source, "daemon", library=name) == ""


def test_daemon_threads_is_false_by_default(library):
    assert library.ThreadingMixIn.daemon_threads is False


def test_the_four_classes_descend_as_drawn(library):
    assert library.TCPServer.__base__ is library.BaseServer
    assert library.UDPServer.__base__ is library.TCPServer
    assert library.UnixStreamServer.__base__ is library.TCPServer
    assert library.UnixDatagramServer.__base__ is library.UDPServer
    assert not issubclass(library.UnixDatagramServer, library.UnixStreamServer)


# --- the mix-ins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"])
def test_the_named_threading_classes_are_the_mix_in_first_and_the_server(library, base):
    assert getattr(library, "Threading" + base).__bases__ == (library.ThreadingMixIn, getattr(library, base))


@pytest.mark.parametrize("base", ["TCPServer", "UDPServer"])
def test_the_named_forking_classes_are_the_mix_in_first_and_the_server(library, base):
    assert getattr(library, "Forking" + base).__bases__ == (library.ForkingMixIn, getattr(library, base))


def test_closing_a_threading_server_waits_for_its_threads(library):
    handler = waiting(library)
    server = library.ThreadingTCPServer(LOCAL, handler)
    closing = threading.Thread(target=server.server_close)
    with connection(server) as client:
        server.handle_request()
        assert client.recv(2) == b"in"
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        handler.go.set()
        closing.join(WAIT)
        assert not closing.is_alive()
        assert client.recv(1) == b""


@pytest.mark.parametrize("attributes", [{"block_on_close": False}, {"daemon_threads": True}], ids=str)
def test_closing_a_threading_server_does_not_wait_if_told_not_to_or_for_daemons(library, attributes):
    handler = waiting(library)
    server = library.ThreadingTCPServer(LOCAL, handler)
    vars(server).update(attributes)
    with connection(server) as client:
        server.handle_request()
        assert client.recv(2) == b"in"
        server.server_close()
        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # the handler is still there
            client.recv(1)
        handler.go.set()
        client.settimeout(WAIT)
        assert client.recv(1) == b""


CLOSE_FORKING = """
import os, signal, socketserver
from compat.classic import LOCAL, connection

class Stay(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        if sys.argv[1]:
            signal.pause()

server = socketserver.ForkingTCPServer(LOCAL, Stay)
server.block_on_close = not sys.argv[1]
with connection(server) as client:
    server.handle_request()
    pid = int(client.makefile("rb").readline())
    server.server_close()
    print("waited" if not server.active_children else "did not wait")
    if sys.argv[1]:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
"""


@BOTH
def test_closing_a_forking_server_waits_for_its_children_unless_told_not_to(name):
    assert program(CLOSE_FORKING, "", library=name) == "waited\n"
    assert program(CLOSE_FORKING, "stay", library=name) == "did not wait\n"


def test_block_on_close_is_true_by_default(library):
    assert library.ThreadingMixIn.block_on_close is library.ForkingMixIn.block_on_close is True


# --- server objects: methods ----------------------------------------------------------------------------------------------


def test_base_server_keeps_its_two_parameters(library):
    handler = object()
    server = library.BaseServer("anywhere", handler)
    assert (server.server_address, server.RequestHandlerClass) == ("anywhere", handler)


def test_fileno_lets_one_selector_watch_several_servers(library):
    handler = upper(library)
    with library.TCPServer(LOCAL, handler) as one, library.TCPServer(LOCAL, handler) as two, selectors.DefaultSelector() as selector:
        assert (type(one.fileno()), one.fileno()) == (int, one.socket.fileno())
        selector.register(one, selectors.EVENT_READ)
        selector.register(two, selectors.EVENT_READ)
        for server in (two, one):
            with connection(server) as client:
                client.sendall(b"x\n")
                [(key, _)] = selector.select(WAIT)
                assert key.fileobj is server
                server.handle_request()
                assert read(client) == b"X\n"


def test_handle_request_calls_get_verify_and_process_in_this_order(library):
    recording = recorder(library.TCPServer, "get_request", "verify_request", "process_request")
    with recording(LOCAL, library.BaseRequestHandler) as server, connection(server):
        server.handle_request()
    assert recording.calls == ["get_request", "verify_request", "process_request"]


def failing(library, error=ZeroDivisionError):
    class Failing(library.BaseRequestHandler):
        def handle(self):
            raise error

    return Failing


def test_an_exception_in_handle_makes_handle_request_call_handle_error(library):
    class Server(library.TCPServer):
        def handle_error(self, request, client_address):
            self.seen = (request.getpeername(), client_address, sys.exc_info()[0])

    with Server(LOCAL, failing(library)) as server, connection(server) as client:
        server.handle_request()
        assert server.seen == (client.getsockname(), client.getsockname(), ZeroDivisionError)


@pytest.mark.parametrize("where", ["server", "socket"])
def test_handle_request_returns_after_handle_timeout_when_no_request_comes(library, where):
    recording = recorder(library.TCPServer, "handle_timeout", "get_request")
    with recording(LOCAL, None) as server:
        if where == "server":
            server.timeout = 0.01
        else:
            server.socket.settimeout(0.01)
        server.handle_request()
    assert recording.calls == ["handle_timeout"]


def test_serve_forever_ignores_the_timeout(library):
    recording = recorder(library.TCPServer, "handle_timeout")
    recording.timeout = 0.001
    turns = threading.Semaphore(0)
    recording.service_actions = lambda self: turns.release()
    with serving(recording(LOCAL, None), 0.01):
        for _ in range(5):
            assert turns.acquire(timeout=WAIT)
    assert recording.calls == []


def test_serve_forever_calls_service_actions_every_poll_interval(library):
    called = threading.Semaphore(0)

    class Server(library.TCPServer):
        def service_actions(self):
            called.release()

    with serving(Server(LOCAL, None), 0.01):
        for _ in range(10):
            assert called.acquire(timeout=WAIT)


def test_service_actions_may_be_given_by_a_mix_in(library):
    called = threading.Event()

    class MixIn:
        def service_actions(self):
            called.set()
            super().service_actions()

    with serving(type("Server", (MixIn, library.TCPServer), {})(LOCAL, None)):
        assert called.wait(WAIT)


@BOTH
def test_the_forking_mix_in_cleans_up_its_zombies_while_serving(name):
    source = """
import socketserver, threading
from compat.classic import LOCAL, serving, talk

class Server(socketserver.ForkingTCPServer):
    def service_actions(self):
        super().service_actions()
        if self.active_children == set():
            clean.set()

clean = threading.Event()
server = Server(LOCAL, socketserver.BaseRequestHandler)
with serving(server):
    talk(server, b"")
    assert clean.wait(10)
print("clean")
"""
    assert program(source, library=name) == "clean\n"


def test_shutdown_stops_serve_forever_and_waits_until_it_has(library):
    in_service, go = threading.Event(), threading.Event()

    class Server(library.TCPServer):
        def service_actions(self):
            in_service.set()
            assert go.wait(WAIT)

    with Server(LOCAL, None) as server:
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        assert in_service.wait(WAIT)
        stop = threading.Thread(target=server.shutdown)
        stop.start()
        stop.join(0.1)
        assert stop.is_alive()
        go.set()
        stop.join(WAIT)
        loop.join(WAIT)
        assert not stop.is_alive()
        assert not loop.is_alive()


def test_server_close_may_be_overridden(library):
    class Server(library.TCPServer):
        def server_close(self):
            super().server_close()
            self.cleaned = True

    with Server(LOCAL, None) as server:
        pass
    assert server.cleaned


# --- server objects: attributes -------------------------------------------------------------------------------------------


def test_address_family_is_the_family_of_the_socket(library):
    class Server(library.TCPServer):
        address_family = socket.AF_INET6

    with Server(("::1", 0), None) as server:
        assert server.socket.family == socket.AF_INET6
    assert library.TCPServer.address_family == socket.AF_INET
    assert library.UnixStreamServer.address_family == socket.AF_UNIX


def test_each_request_makes_an_instance_of_the_handler_class(library):
    made = []

    class Handler(library.BaseRequestHandler):
        def handle(self):
            made.append(self)

    server = library.TCPServer(LOCAL, Handler)
    assert server.RequestHandlerClass is Handler
    with serving(server):
        for _ in range(3):
            talk(server, b"")
    assert [type(each) for each in made] == [Handler] * 3
    assert len(set(map(id, made))) == 3


def test_server_address_is_a_host_and_a_port(library):
    with library.TCPServer(LOCAL, None) as server:
        host, port = server.server_address
        assert (host, port) == server.socket.getsockname()
        assert (type(host), type(port)) == (str, int)


def test_socket_is_what_the_server_listens_on(library):
    with library.TCPServer(LOCAL, None) as server:
        assert isinstance(server.socket, socket.socket)
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize("reuse", [False, True])
def test_allow_reuse_address_is_false_unless_a_subclass_says_otherwise(library, reuse):
    server_class = type("Server", (library.TCPServer,), {"allow_reuse_address": True} if reuse else {})
    with server_class(LOCAL, None) as server:
        assert bool(server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is reuse


def test_request_queue_size_is_passed_to_listen_and_may_be_overridden(library):
    class Listener:
        def listen(self, backlog):
            self.backlog = backlog

    default = 5 if sys.version_info < (3, 15) else socket.SOMAXCONN
    for attributes, expected in (({}, default), ({"request_queue_size": 17}, 17)):
        server = type("Server", (library.TCPServer,), attributes)(LOCAL, None, bind_and_activate=False)
        server.socket.close()
        server.socket = Listener()
        server.server_activate()
        assert server.socket.backlog == expected


def test_requests_that_come_while_the_server_is_busy_wait_in_the_queue(library):
    handler = waiting(library)
    server = library.TCPServer(LOCAL, handler)
    with serving(server), connection(server) as first:
        assert first.recv(2) == b"in"
        with connection(server) as second, connection(server) as third:  # connected while nobody accepts
            handler.go.set()
            assert read(second) == read(third) == b"in"


def test_socket_type_is_the_type_of_the_socket(library):
    assert library.TCPServer.socket_type == socket.SOCK_STREAM
    assert library.UDPServer.socket_type == socket.SOCK_DGRAM
    with library.UDPServer(LOCAL, None) as server:
        assert server.socket.type == socket.SOCK_DGRAM


def test_no_timeout_is_none(library):
    assert library.TCPServer.timeout is None


# --- server objects: methods to override ----------------------------------------------------------------------------------


def test_finish_request_makes_a_handler_which_calls_handle(library):
    calls = []

    class Handler(library.BaseRequestHandler):
        def handle(self):
            calls.append((self.request, self.client_address, self.server))

    server = library.BaseServer("x", Handler)
    server.finish_request("request", "address")
    assert calls == [("request", "address", server)]


def test_get_request_gives_a_new_socket_and_the_clients_address(library):
    with library.TCPServer(LOCAL, None) as server, connection(server) as client:
        request, address = server.get_request()
        with request:
            assert request is not server.socket
            assert (request.getpeername(), address) == (client.getsockname(), client.getsockname())


def test_handle_error_prints_a_traceback_to_standard_error_and_the_server_goes_on(library, capsys):
    server = library.TCPServer(LOCAL, failing(library))
    with serving(server), connection(server) as client:
        host, port = client.getsockname()
        assert read(client) == b""
        assert talk(server, b"") == b""
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("-" * 40) == 4
    assert lines[1:3] == [f"Exception occurred during processing of request from ('{host}', {port})", "Traceback (most recent call last):"]
    assert lines.count("ZeroDivisionError") == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_handle_error_is_only_for_exception(library, error):
    recording = recorder(library.TCPServer, "handle_error", "close_request")
    with recording(LOCAL, failing(library, error)) as server, connection(server) as client:
        with pytest.raises(error):
            server.handle_request()
        assert client.recv(1) == b""
    assert recording.calls == ["close_request"]


def test_handle_timeout_does_nothing_by_default(library):
    with library.TCPServer(LOCAL, None) as server, library.ThreadingTCPServer(LOCAL, None) as threading_server:
        assert server.handle_timeout() is threading_server.handle_timeout() is None


@BOTH
def test_handle_timeout_of_a_forking_server_collects_the_children_that_have_ended(name):
    source = """
import os, socketserver
from compat.classic import LOCAL, talk
import threading

server = socketserver.ForkingTCPServer(LOCAL, socketserver.BaseRequestHandler)
server.timeout = 0.01
with server:
    client = threading.Thread(target=talk, args=(server, b""))
    client.start()
    server.handle_request()
    client.join()
    [pid] = server.active_children
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    server.handle_request()
    print(server.active_children)
"""
    assert program(source, library=name) == "set()\n"


def test_process_request_calls_finish_request(library):
    recording = recorder(library.TCPServer, "finish_request", "shutdown_request")
    with recording(LOCAL, library.BaseRequestHandler) as server, connection(server):
        server.process_request(*server.get_request())
    assert recording.calls == ["finish_request", "shutdown_request"]


def test_server_activate_and_server_bind_may_be_overridden(library):
    class Server(library.TCPServer):
        def server_bind(self):
            self.server_address = "not bound"

        def server_activate(self):
            self.activated = True

    with Server(LOCAL, None) as server:
        assert (server.server_address, server.activated) == ("not bound", True)
        assert server.socket.getsockname()[1] == 0


def test_a_datagram_server_does_not_listen(library):
    with library.UDPServer(LOCAL, None) as server:
        assert server.server_activate() is None


@pytest.mark.parametrize("answer", [True, False])
def test_a_request_is_processed_or_denied_as_verify_request_says(library, answer):
    class Server(library.TCPServer):
        def verify_request(self, request, client_address):
            self.asked = client_address
            return answer

    server = Server(LOCAL, upper(library))
    with serving(server), connection(server) as client:
        client.sendall(b"x\n")
        try:
            assert read(client) == (b"X\n" if answer else b"")
        except ConnectionResetError:
            assert not answer  # closed with what the client sent unread
        assert server.asked == client.getsockname()


def test_verify_request_says_yes_by_default(library):
    assert library.BaseServer("x", None).verify_request(None, None) is True


# --- request handlers -----------------------------------------------------------------------------------------------------


def test_setup_handle_and_finish_are_called_in_this_order_and_do_nothing_by_default(library):
    recording = recorder(library.BaseRequestHandler, "setup", "handle", "finish")
    recording("request", "address", "server")
    assert recording.calls == ["setup", "handle", "finish"]
    library.BaseRequestHandler("request", "address", "server")


def test_finish_is_called_after_handle_has_raised(library):
    recording = recorder(library.BaseRequestHandler, "setup", "finish")
    recording.handle = lambda self: 1 / 0
    with pytest.raises(ZeroDivisionError):
        recording("request", "address", "server")
    assert recording.calls == ["setup", "finish"]


def test_finish_is_not_called_after_setup_has_raised(library):
    recording = recorder(library.BaseRequestHandler, "handle", "finish")
    recording.setup = lambda self: 1 / 0
    with pytest.raises(ZeroDivisionError):
        recording("request", "address", "server")
    assert recording.calls == []


def test_handle_finds_request_client_address_and_server(library):
    handler = library.BaseRequestHandler("request", "address", "server")
    assert (handler.request, handler.client_address, handler.server) == ("request", "address", "server")


def test_a_stream_request_is_a_socket_and_a_datagram_is_bytes_and_a_socket(library):
    requests = []

    class Handler(library.BaseRequestHandler):
        def handle(self):
            requests.append((self.request, self.client_address))

    with serving(stream := library.TCPServer(LOCAL, Handler)), connection(stream) as client:
        assert read(client) == b""
        peer = client.getsockname()
    with library.UDPServer(LOCAL, Handler) as datagrams, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(LOCAL)
        sender.sendto(b"data", datagrams.server_address)
        datagrams.handle_request()
        sent_from = sender.getsockname()
    (sock, address), ((data, reply_socket), sender_address) = requests
    assert (type(sock), address) == (socket.socket, peer)
    assert (data, reply_socket, sender_address) == (b"data", datagrams.socket, sent_from)


def test_both_derived_handlers_offer_the_interface_of_buffered_files(library):
    seen = []

    def handle(self):
        seen.append((self.rfile.readable(), self.wfile.writable(), self.rfile.readline(), self.wfile.write(b"bytes")))
        assert isinstance(self.rfile, io.BufferedIOBase)
        assert isinstance(self.wfile, io.BufferedIOBase)
        with pytest.raises(io.UnsupportedOperation):
            self.wfile.read() if not isinstance(self.wfile, io.BytesIO) else self.rfile.fileno()

    stream = type("Stream", (library.StreamRequestHandler,), {"handle": handle})
    datagram = type("Datagram", (library.DatagramRequestHandler,), {"handle": handle})
    with serving(server := library.TCPServer(LOCAL, stream)):
        assert talk(server, b"line\nrest") == b"bytes"
    with serving(server := library.UDPServer(LOCAL, datagram)):
        assert ask(server, b"line\nrest") == b"bytes"
    assert seen == [(True, True, b"line\n", 5)] * 2


def test_readline_reads_until_the_end_of_the_line_however_many_pieces_it_comes_in(library):
    server = library.TCPServer(LOCAL, upper(library))
    with serving(server), connection(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"one", b"two", b"three\n"):
            client.sendall(piece)
        assert read(client) == b"ONETWOTHREE\n"


# --- the examples ---------------------------------------------------------------------------------------------------------


SERVER_OUTPUT = """\
127.0.0.1 wrote:
b'hello world with TCP'
127.0.0.1 wrote:
b'python is nice'
"""

CLIENT_OUTPUT = """\
Sent:     hello world with TCP
Received: HELLO WORLD WITH TCP
Sent:     python is nice
Received: PYTHON IS NICE
"""


@BOTH
@pytest.mark.parametrize(("server", "kind"), [("shout_raw.py", "tcp"), ("shout_lines.py", "tcp"), ("shout_datagrams.py", "udp")])
def test_the_first_examples_print_what_the_documentation_shows(name, server, kind):
    with Program(*example(server, name), env=ENVIRONMENT) as program:
        [port] = program.line(r"^port (\d+)$")
        said = [run(*example("say.py"), kind, port[1], *words.split()).stdout for words in ("hello world with TCP", "python is nice")]
        assert program.stop(signal.SIGINT) == -signal.SIGINT
    assert "".join(said) == CLIENT_OUTPUT
    assert program.output.partition("\n")[2].startswith(SERVER_OUTPUT)
    assert program.output.rstrip().endswith("KeyboardInterrupt")


ASYNCHRONOUS_OUTPUT = """\
Server loop running in thread: Thread-1
Received: Thread-2: Hello World 1
Received: Thread-3: Hello World 2
Received: Thread-4: Hello World 3
"""


@BOTH
def test_the_threading_example_prints_what_the_documentation_shows(name):
    output = run(*example("worker_per_request.py", name), env=ENVIRONMENT).stdout
    assert re.sub(r"(Thread-\d+) \(\w+\)", r"\1", output) == ASYNCHRONOUS_OUTPUT  # since 3.10 a thread's name also says what it runs


@BOTH
def test_the_forking_example_uses_a_process_for_each_request(name):
    output = run(*example("worker_per_request.py", name), "fork", env=ENVIRONMENT).stdout
    found = re.findall(r"^Received: Process-(\d+): Hello World (\d)$", output, re.MULTILINE)
    assert [number for _, number in found] == ["1", "2", "3"]
    assert len({pid for pid, _ in found} | {str(os.getpid())}) == 4
