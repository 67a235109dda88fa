"""What programs do to `socketserver` beyond its documentation, each in the way it is done out there. All of it works on both libraries."""

import io
import queue
import select
import selectors
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import pytest

from compat.classic import LOCAL, NEW, OLD, WAIT, asleep, connection, looping, program, read, serving, talk

BOTH = pytest.mark.parametrize("name", [OLD, NEW], ids=["stdlib", "socketkit"])


@pytest.fixture
def upper(library):
    """A handler that answers a line with its capitals."""

    class Upper(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    return Upper


def start(server, *arguments):
    """Serve in a thread, and return it."""
    thread = threading.Thread(target=server.serve_forever, args=arguments or (0.02,))
    thread.start()
    return thread


def ended(thread):
    thread.join(WAIT)
    return not thread.is_alive()


# --- the mangled names ----------------------------------------------------------------------------------------------------


def test_a_handler_stops_the_loop_by_setting_the_mangled_flag(library):
    class Stop(library.BaseRequestHandler):
        def handle(self):
            self.server._BaseServer__shutdown_request = True

    with library.TCPServer(LOCAL, Stop) as server:
        loop = start(server)
        assert talk(server, b"") == b""
        assert ended(loop)
        assert server._BaseServer__shutdown_request is False  # ready for the next run


def test_another_thread_stops_the_loop_by_setting_the_mangled_flag(library, upper):
    with library.ThreadingTCPServer(LOCAL, upper) as server:
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        server._BaseServer__shutdown_request = True
        assert ended(loop)


def test_the_flag_and_the_event_are_in_the_instances_dictionary(library):
    server = library.BaseServer("x", None)
    assert vars(server)["_BaseServer__shutdown_request"] is False
    assert isinstance(vars(server)["_BaseServer__is_shut_down"], threading.Event)


def test_the_event_is_clear_while_serving_and_set_afterwards(library, upper):
    with library.TCPServer(LOCAL, upper) as server:
        over = vars(server)["_BaseServer__is_shut_down"]
        assert not over.is_set()
        with looping(server):
            assert talk(server, b"x\n") == b"X\n"
            assert not over.is_set()
        assert over.is_set()


@pytest.mark.parametrize("value", [True, False])
def test_a_subclass_may_have_the_flag_as_a_class_attribute(library, upper, value):
    class Server(library.TCPServer):
        _BaseServer__shutdown_request = value

    with Server(LOCAL, upper) as server:  # the constructor sets the instance's own
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        server.shutdown()
        assert ended(loop)


def test_a_class_attribute_stops_a_server_whose_constructor_never_ran(library):
    class Server(library.TCPServer):
        _BaseServer__shutdown_request = True
        _BaseServer__is_shut_down = threading.Event()

    with socket.create_server(LOCAL) as listener:
        server = object.__new__(Server)
        server.socket = listener
        server.serve_forever()


def test_a_subclass_may_have_the_flag_as_a_property(library, upper):
    class Server(library.TCPServer):
        stopping = False

        @property
        def _BaseServer__shutdown_request(self):  # noqa: N802 - the name is the point
            return self.stopping

        @_BaseServer__shutdown_request.setter
        def _BaseServer__shutdown_request(self, value):  # noqa: N802 - the name is the point
            self.stopping = value

    with Server(LOCAL, upper) as server:
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        server.stopping = True
        assert ended(loop)


def test_the_event_may_be_replaced_on_the_class(library, upper):
    class Recorder:
        def __init__(self):
            self.calls = queue.SimpleQueue()

        def __getattr__(self, name):
            return lambda: self.calls.put(name)

    event = Recorder()
    attributes = {"_BaseServer__is_shut_down": event, "_BaseServer__shutdown_request": False}
    server_class = type("Server", (library.TCPServer,), attributes)
    with socket.create_server(LOCAL) as listener:
        server = object.__new__(server_class)
        server.socket, server.RequestHandlerClass = listener, upper
        server.server_address = listener.getsockname()
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        server.shutdown()
        assert ended(loop)
    assert event.calls.get() == "clear"
    assert {event.calls.get(), event.calls.get()} == {"wait", "set"}


def test_the_event_may_be_replaced_while_serving(library, upper):
    with library.TCPServer(LOCAL, upper) as server:
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        server._BaseServer__is_shut_down = threading.Event()
        server.shutdown()
        assert server._BaseServer__is_shut_down.is_set()
        assert ended(loop)


def test_shutdown_waits_for_a_copy_of_the_loop_written_around_the_mangled_names(library, upper):
    go = threading.Event()

    class Server(library.TCPServer):
        def serve_forever(self, poll_interval=0.01):
            self._BaseServer__is_shut_down.clear()
            try:
                with library._ServerSelector() as selector:
                    selector.register(self, selectors.EVENT_READ)
                    while not self._BaseServer__shutdown_request:
                        if selector.select(poll_interval):
                            self._handle_request_noblock()
                        self.service_actions()
                assert go.wait(WAIT)
            finally:
                self._BaseServer__shutdown_request = False
                self._BaseServer__is_shut_down.set()

    with Server(LOCAL, upper) as server:
        loop = start(server)
        assert talk(server, b"x\n") == b"X\n"
        stop = threading.Thread(target=server.shutdown)
        stop.start()
        stop.join(0.1)
        assert stop.is_alive()
        go.set()
        assert ended(stop)
        assert ended(loop)


# --- the loop and its pieces ----------------------------------------------------------------------------------------------


def test_a_subclass_replaces_handle_request_noblock(library, upper):
    class Server(library.TCPServer):
        taken = 0

        def _handle_request_noblock(self):
            request, address = self.get_request()
            self.taken += 1
            self.finish_request(request, address)
            self.shutdown_request(request)

    server = Server(LOCAL, upper)
    with serving(server):
        assert [talk(server, b"x\n"), talk(server, b"y\n")] == [b"X\n", b"Y\n"]
    assert server.taken == 2


def test_a_subclass_wraps_handle_request_noblock(library, upper):
    class Server(library.ThreadingTCPServer):
        turns = 0

        def _handle_request_noblock(self):
            self.turns += 1
            super()._handle_request_noblock()

    server = Server(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
    assert server.turns == 1


def test_a_foreign_loop_serves_several_servers(library, upper):
    with library.TCPServer(LOCAL, upper) as one, library.ThreadingTCPServer(LOCAL, upper) as two:
        for server in (one, two, one):
            with connection(server) as client:
                client.sendall(b"x\n")
                ready, _, _ = select.select([one, two], [], [], WAIT)
                assert ready == [server]
                ready[0]._handle_request_noblock()
                assert read(client) == b"X\n"


def test_a_foreign_loop_is_not_told_of_errors_in_taking_a_request(library):
    class Server(library.TCPServer):
        def get_request(self):
            raise OSError("no handshake")

    with Server(LOCAL, None) as server:
        assert server._handle_request_noblock() is None


def test_a_connection_whose_get_request_failed_is_closed_as_soon_as_nobody_has_it(library):
    class Server(library.TCPServer):
        def get_request(self):
            request, _ = super().get_request()
            _Closing(request).fail()

    with Server(LOCAL, None) as server, connection(server) as client:
        server.handle_request()
        assert client.recv(1) == b""


class _Closing:
    """Closes a socket when it is collected, and without a warning."""

    def __init__(self, sock):
        self.sock = sock

    def __del__(self):
        self.sock.close()

    def fail(self):
        raise OSError("no handshake")


@pytest.mark.parametrize("base", ["PollSelector", "SelectSelector", "DefaultSelector"])
def test_the_selector_may_be_replaced_by_one_that_records(library, upper, monkeypatch, base):
    waits = []

    class Recording(getattr(selectors, base)):
        def select(self, timeout=None):
            waits.append(timeout)
            return super().select(timeout)

    monkeypatch.setattr(library, "_ServerSelector", Recording)
    server = library.TCPServer(LOCAL, upper)
    with serving(server, 0.05):
        assert talk(server, b"x\n") == b"X\n"
    assert waits
    assert all(0.04 < timeout <= 0.05 for timeout in waits)


def test_serve_forever_is_taken_off_the_class_and_called_by_keyword_or_position(library, upper):
    class Server(library.TCPServer):
        serve = library.TCPServer.serve_forever

    for call in (lambda server: server.serve(poll_interval=0.02), lambda server: server.serve(0.02)):
        with Server(LOCAL, upper) as server:
            loop = threading.Thread(target=call, args=(server,))
            loop.start()
            assert talk(server, b"x\n") == b"X\n"
            server.shutdown()
            assert ended(loop)


def test_service_actions_may_be_set_on_the_instance(library):
    called = threading.Event()
    server = library.TCPServer(LOCAL, None)
    server.service_actions = called.set
    with serving(server):
        assert called.wait(WAIT)


def test_a_server_serves_again_in_another_thread(library, upper):
    with library.TCPServer(LOCAL, upper) as server:
        for _ in range(3):
            with looping(server):
                assert talk(server, b"x\n") == b"X\n"


def test_a_server_may_be_made_of_handle_request_calls_in_its_constructor(library, upper):
    class Server(library.TCPServer):
        def __init__(self):
            super().__init__(LOCAL, upper)
            with connection(self) as client:
                client.sendall(b"x\n")
                self.handle_request()
                self.reply = read(client)

    with Server() as server:
        assert server.reply == b"X\n"


# --- threads --------------------------------------------------------------------------------------------------------------


def test_process_request_is_copied_with_its_list_of_threads(library, upper):
    class Server(library.ThreadingMixIn, library.TCPServer):
        def process_request(self, request, client_address):
            vars(self).setdefault("_threads", library._Threads())
            thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), name="copied")
            self._threads.append(thread)
            thread.start()

    server = Server(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
        assert len(server._threads) <= 1
    assert len(server._threads) == 0


def test_the_list_of_threads_forgets_those_that_have_ended(library, upper):
    server = library.ThreadingTCPServer(LOCAL, upper)
    with serving(server):
        for _ in range(10):
            assert talk(server, b"x\n") == b"X\n"
            for thread in list(server._threads):
                thread.join(WAIT)
        assert len(server._threads) <= 1


def test_the_list_of_threads_offers_what_programs_call(library):
    threads = library._Threads()
    thread = threading.Thread(target=int)
    thread.start()
    daemon = threading.Thread(target=int, daemon=True)
    daemon.start()
    threads.append(daemon)
    assert threads == []
    thread.join()
    threads.append(thread)
    threads.reap()
    assert threads.pop_all() == []
    threads.append(thread)
    assert threads.pop_all() == [thread]
    threads.join()
    assert library._NoThreads().append(thread) is library._NoThreads().join() is None


def test_servers_without_threads_share_an_empty_list(library):
    assert isinstance(library.ThreadingMixIn._threads, library._NoThreads)
    with library.ThreadingTCPServer(LOCAL, None) as server:
        assert "_threads" not in vars(server)


def test_process_request_thread_is_extended_in_the_thread_of_the_handler(library):
    seen = []

    class Server(library.ThreadingMixIn, library.TCPServer):
        def process_request_thread(self, request, client_address):
            seen.append(threading.current_thread())
            super().process_request_thread(request, client_address)

        def close_request(self, request):
            seen.append(threading.current_thread())
            super().close_request(request)

    class Handler(library.BaseRequestHandler):
        def handle(self):
            seen.append(threading.current_thread())

    server = Server(LOCAL, Handler)
    with serving(server) as loop:
        assert talk(server, b"") == b""
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] not in {loop, threading.current_thread()}


def test_process_request_thread_is_borrowed_from_the_mix_in(library, upper):
    class Server(library.TCPServer):
        process_request_thread = library.ThreadingMixIn.process_request_thread

        def process_request(self, request, client_address):
            self.process_request_thread(request, client_address)

    server = Server(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"


def test_process_request_thread_is_called_on_the_class(library, upper):
    class Server(library.ThreadingTCPServer):
        def process_request_thread(self, request, client_address):
            library.ThreadingMixIn.process_request_thread(self, request, client_address)

    server = Server(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"


def test_process_request_thread_is_submitted_to_a_pool_of_the_programs_own(library, upper):
    class Server(library.ThreadingMixIn, library.TCPServer):
        def process_request(self, request, client_address):
            pool.submit(self.process_request_thread, request, client_address)

    with ThreadPoolExecutor(2) as pool:
        server = Server(LOCAL, upper)
        with serving(server):
            assert [talk(server, b"x\n") for _ in range(4)] == [b"X\n"] * 4


def test_process_request_thread_of_a_mix_in_that_comes_last_is_the_one_that_runs(library, upper):
    ran = []

    class Pool(library.ThreadingMixIn):
        def process_request_thread(self, request, client_address):
            ran.append(client_address)
            super().process_request_thread(request, client_address)

    class Server(library.TCPServer, Pool):
        process_request = Pool.process_request

    server = Server(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
    assert len(ran) == 1


def test_threads_are_named_after_process_request_thread(library):
    class Name(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(threading.current_thread().name.encode())

    server = library.ThreadingTCPServer(LOCAL, Name)
    with serving(server):
        assert talk(server, b"").endswith(b"(process_request_thread)")


def test_a_request_stays_open_after_its_handler_if_the_hooks_do_not_close_it(library):
    owned = queue.SimpleQueue()

    class Server(library.ThreadingMixIn, library.TCPServer):
        def process_request_thread(self, request, client_address):
            self.finish_request(request, client_address)

    class Own(library.BaseRequestHandler):
        def handle(self):
            owned.put(self.request)

    server = Server(LOCAL, Own)
    with serving(server), connection(server) as client:
        with owned.get(timeout=WAIT) as request:
            server.shutdown()
            request.sendall(b"still here")
            assert client.recv(10) == b"still here"
        assert client.recv(1) == b""


def test_thread_may_be_replaced_where_the_module_looks_for_it(library, upper, monkeypatch):
    made = []

    class Recording(threading.Thread):
        def __init__(self, *arguments, **options):
            made.append(options)
            super().__init__(*arguments, **options)

    with library.ThreadingTCPServer(LOCAL, upper) as server, connection(server) as client:
        client.sendall(b"x\n")
        with monkeypatch.context() as patch:
            patch.setattr(library.threading, "Thread", Recording)
            server.handle_request()
        assert read(client) == b"X\n"
    [options] = made
    _request, address = options["args"]
    assert address[0] == "127.0.0.1"
    assert options["target"] == server.process_request_thread


def test_the_socket_class_may_be_replaced_where_the_module_looks_for_it(library, monkeypatch):
    class Named(socket.socket):
        pass

    monkeypatch.setattr(library.socket, "socket", Named)
    with library.TCPServer(LOCAL, None) as server:
        assert type(server.socket) is Named


def test_a_server_starts_while_the_socket_class_is_a_mock(library, upper):
    with library.TCPServer(LOCAL, upper) as server:
        with mock.patch("socket.socket"):  # as in CPython's test_logging, just after it has started a thread that serves
            thread = start(server)
            assert asleep(thread)
        assert talk(server, b"x\n") == b"X\n"
        server.shutdown()
        assert ended(thread)


@BOTH
def test_a_server_class_may_be_a_thread_too(name):
    source = """
import socketserver, threading
from compat.classic import LOCAL, talk

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Server(socketserver.TCPServer, threading.Thread):
    def __init__(self):
        socketserver.TCPServer.__init__(self, LOCAL, Upper)
        threading.Thread.__init__(self, name="server", daemon=True)

    def run(self):
        self.serve_forever(0.02)

with Server() as server:
    server.start()
    print(talk(server, b"x\\n"), server.is_alive(), server.name)
    server.shutdown()
    server.join(10)
    print(server.is_alive())
"""
    assert program(source, library=name) == "b'X\\n' True server\nFalse\n"


# --- forks ----------------------------------------------------------------------------------------------------------------


@BOTH
def test_process_request_of_a_forking_server_is_copied_with_its_set_of_children(name):
    source = """
import os, socketserver
from compat.classic import LOCAL, serving, talk

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
    def process_request(self, request, client_address):
        pid = os.fork()
        if not pid:
            self.finish_request(request, client_address)
            self.shutdown_request(request)
            os._exit(0)
        if self.active_children is None:
            self.active_children = set()
        self.active_children.add(pid)
        self.close_request(request)

server = Server(LOCAL, Upper)
server.max_children = 2
with serving(server):
    print([talk(server, b"x\\n") for _ in range(5)])
print(server.active_children)
"""
    assert program(source, library=name) == str([b"X\n"] * 5) + "\nset()\n"


def test_active_children_is_none_and_max_children_forty_before_the_first_child(library):
    with library.ForkingTCPServer(LOCAL, None) as server:
        assert server.active_children is None
        assert (server.max_children, server.timeout) == (40, 300)
        server.collect_children()
        server.collect_children(blocking=True)


# --- construction ---------------------------------------------------------------------------------------------------------


def test_the_base_constructor_alone_makes_a_server(library):
    class Mock(library.TCPServer):
        def __init__(self, server_address, handler):
            library.BaseServer.__init__(self, server_address, handler)
            self.server_bind()

        def server_bind(self):
            self.bound = True

    assert Mock("nowhere", None).bound


def test_a_server_needs_no_constructor_at_all(library, upper):
    server = object.__new__(library.ThreadingTCPServer)
    server.socket = socket.create_server(LOCAL)
    server.server_address = server.socket.getsockname()
    server.RequestHandlerClass = upper
    with connection(server) as client:
        client.sendall(b"x\n")
        server.handle_request()
        assert read(client) == b"X\n"
    server.server_close()


def test_the_constructor_may_be_called_again_on_the_same_server(library, upper):
    server = library.ThreadingTCPServer(LOCAL, upper)
    for _ in range(2):
        with looping(server):
            assert talk(server, b"x\n") == b"X\n"
        server.server_close()
        server.__init__(LOCAL, upper)
    server.server_close()


def test_attributes_may_be_set_before_the_constructor(library):
    class Server(library.TCPServer):
        def __init__(self):
            self.socket = None
            self.server_address = "overwritten"
            self.address_family = socket.AF_INET6
            self.request_queue_size = 300
            self.allow_reuse_address = True
            super().__init__(("::1", 0), None)

    with Server() as server:
        assert server.socket.family == socket.AF_INET6
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert server.server_address[0] == "::1"


def test_the_constructor_does_not_call_that_of_a_class_next_in_line(library):
    class Dispatcher:
        def __init__(self, one, argument):
            raise AssertionError("not mine to call")

    class Server(library.TCPServer, Dispatcher):
        pass

    with Server(LOCAL, None) as server:
        assert server.fileno() > 0


def test_a_failed_constructor_leaves_nothing_open(library):
    recorded = []

    class Server(library.TCPServer):
        def server_close(self):
            super().server_close()
            recorded.append(self.socket.fileno())

    with pytest.raises(OverflowError):
        Server(("127.0.0.1", -1), None)
    assert recorded == [-1]


def test_attributes_set_on_the_instance_after_construction_take_effect(library, upper):
    daemons = queue.SimpleQueue()

    class Handler(upper):
        def handle(self):
            daemons.put(threading.current_thread().daemon)

    server = library.ThreadingTCPServer(LOCAL, Handler, bind_and_activate=False)
    server.daemon_threads = True
    server.allow_reuse_address = True
    server.server_bind()
    server.server_activate()
    assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with serving(server):
        assert talk(server, b"") == b""
        assert daemons.get(timeout=WAIT) is True
        assert not server._threads


def test_a_class_made_by_type_is_recognised_by_its_mix_in(library):
    server_class = type("WSGIServer", (library.ThreadingMixIn, library.TCPServer), {})
    with server_class(LOCAL, None) as server:
        assert isinstance(server, library.ThreadingMixIn)
        assert [each.__name__ for each in server_class.__mro__[:3]] == ["WSGIServer", "ThreadingMixIn", "TCPServer"]


def test_the_unix_class_mixes_with_a_server_of_another_family(library):
    class Http(library.TCPServer):
        pass

    assert type("UnixHttp", (library.UnixStreamServer, Http), {}).address_family == socket.AF_UNIX


def test_the_mix_ins_are_plain_classes(library):
    for mixin in (library.ThreadingMixIn, library.ForkingMixIn):
        assert type(mixin) is type
        assert mixin.__bases__ == (object,)
        assert "__init__" not in vars(mixin)
        assert "__slots__" not in vars(mixin)


# --- the socket -----------------------------------------------------------------------------------------------------------


def test_the_socket_may_be_replaced_after_construction(library, upper):
    server = library.TCPServer(LOCAL, upper)
    server.socket.close()
    server.socket = socket.create_server(LOCAL)
    server.server_address = server.socket.getsockname()
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"


def test_the_socket_may_be_replaced_by_one_of_the_same_descriptor_while_serving(library, upper):
    server = library.TCPServer(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
        server.socket = socket.socket(fileno=server.socket.detach())
        assert talk(server, b"y\n") == b"Y\n"


def test_the_socket_may_be_an_inherited_one(library, upper):
    with socket.create_server(LOCAL) as listener:
        server = library.TCPServer(listener.getsockname(), upper, bind_and_activate=False)
        server.server_close()
        server.socket = socket.fromfd(listener.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        server.server_address = server.socket.getsockname()
        with serving(server):
            assert talk(server, b"x\n") == b"X\n"


def test_get_request_may_return_the_servers_own_socket(library):
    """As a program that connects out and is then asked over that connection."""
    lines = []

    class Handler(library.BaseRequestHandler):
        def handle(self):
            lines.append((self.request.recv(100), self.client_address))

    class Calling(library.TCPServer):
        def server_bind(self):
            pass

        def server_activate(self):
            self.socket.connect(self.server_address)

        def get_request(self):
            return self.socket, self.server_address

        def shutdown_request(self, request):
            pass

    with socket.create_server(LOCAL) as listener, Calling(listener.getsockname(), Handler) as server:
        peer, _ = listener.accept()
        with peer:
            for line in (b"one", b"two"):
                peer.sendall(line)
                server.handle_request()
            with looping(server):
                pass
    assert lines == [(b"one", server.server_address), (b"two", server.server_address)]


def test_a_request_may_be_anything_and_its_address_nothing(library):
    handled = []

    class Server(library.BaseServer):
        def get_request(self):
            return "request", None

        def fileno(self):
            return reader.fileno()

    class Handler(library.BaseRequestHandler):
        def handle(self):
            handled.append((self.request, self.client_address))
            self.server._BaseServer__shutdown_request = True

    reader, writer = socket.socketpair()
    with reader, writer:
        writer.send(b"x")
        Server(None, Handler).serve_forever(0.01)
    assert handled == [("request", None)]


def test_server_close_may_be_called_twice(library):
    server = library.ThreadingTCPServer(LOCAL, None)
    server.server_close()
    server.server_close()
    assert server.socket.fileno() == -1


def test_methods_may_be_bound_onto_the_instance(library, upper):
    server = library.TCPServer(LOCAL, upper)
    asked = []
    server.verify_request = lambda request, address: asked.append(address) or True
    server.process_request = partial(library.TCPServer.process_request, server)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
    assert len(asked) == 1


# --- errors ---------------------------------------------------------------------------------------------------------------


class OnPurposeError(Exception):
    """Raised by handlers under test."""


def raising(library, error=OnPurposeError):
    class Raising(library.BaseRequestHandler):
        def handle(self):
            raise error

    return Raising


def test_handle_error_sees_the_exception_and_its_bare_raise_leaves_serve_forever(library):
    class Server(library.TCPServer):
        def handle_error(self, request, client_address):
            assert isinstance(sys.exc_info()[1], OnPurposeError)
            self.peer = request.getpeername()
            self.shutdown_request(request)
            raise  # noqa: PLE0704 - this is what programs do

    with Server(LOCAL, raising(library)) as server, connection(server) as client:
        with pytest.raises(OnPurposeError):
            server.serve_forever(0.02)
        assert server.peer == client.getsockname()
        assert vars(server)["_BaseServer__is_shut_down"].is_set()
        with connection(server), pytest.raises(OnPurposeError):  # and it may serve again
            server.serve_forever(0.02)


def test_an_error_that_is_no_exception_leaves_serve_forever(library):
    with library.TCPServer(LOCAL, raising(library, SystemExit)) as server, connection(server) as client:
        with pytest.raises(SystemExit):
            server.serve_forever(0.02)
        assert client.recv(1) == b""


def test_an_error_in_service_actions_leaves_serve_forever(library):
    class Server(library.TCPServer):
        def service_actions(self):
            raise OnPurposeError

    with Server(LOCAL, None) as server, pytest.raises(OnPurposeError):
        server.serve_forever(0.01)


def test_an_error_in_get_request_other_than_of_the_system_leaves_serve_forever(library):
    class Server(library.TCPServer):
        def get_request(self):
            request, _ = super().get_request()
            request.close()
            raise OnPurposeError

    with Server(LOCAL, None) as server, connection(server), pytest.raises(OnPurposeError):
        server.serve_forever(0.01)


def test_an_error_in_a_thread_goes_to_handle_error_and_one_that_is_no_exception_to_the_excepthook(library, monkeypatch):
    seen = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.put(("hook", arguments.exc_type)))

    class Server(library.ThreadingTCPServer):
        def handle_error(self, request, client_address):
            seen.put(("handle_error", sys.exc_info()[0]))

    for error, where in ((OnPurposeError, "handle_error"), (GeneratorExit, "hook")):
        server = Server(LOCAL, raising(library, error))
        with serving(server):
            assert talk(server, b"") == b""
            assert seen.get(timeout=WAIT) == (where, error)


# --- handlers -------------------------------------------------------------------------------------------------------------


def test_a_handler_may_be_any_callable(library):
    calls = []

    def handle(prefix, request, client_address, server):
        request.sendall(prefix)
        calls.append((client_address, server))

    for handler in (partial(handle, b"partial"), lambda *request: handle(b"lambda", *request)):
        server = library.TCPServer(LOCAL, handler)
        with serving(server):
            assert talk(server, b"") in {b"partial", b"lambda"}
    assert [each for _, each in calls][-1] is server


def test_a_handlers_constructor_may_take_more_and_set_attributes_first(library):
    class Greeting(library.StreamRequestHandler):
        def __init__(self, greeting, *arguments):
            self.greeting = greeting
            super().__init__(*arguments)

        def handle(self):
            self.wfile.write(self.greeting)

    server = library.TCPServer(LOCAL, partial(Greeting, b"hello"))
    with serving(server):
        assert talk(server, b"") == b"hello"


def test_a_handlers_timeout_may_be_a_property(library):
    class Impatient(library.StreamRequestHandler):
        @property
        def timeout(self):
            return 0.01

        def handle(self):
            with pytest.raises(TimeoutError):
                self.rfile.read(1)
            self.wfile.write(b"too late")

    server = library.TCPServer(LOCAL, Impatient)
    with serving(server), connection(server) as client:
        assert read(client) == b"too late"


def test_setup_may_be_called_again_after_the_request_was_replaced(library):
    class Twice(library.StreamRequestHandler):
        def handle(self):
            first = self.connection
            self.wfile.write(b"one ")
            self.request = first.dup()
            self.setup()
            assert self.connection is not first
            self.wfile.write(b"two")
            self.connection.close()

    server = library.TCPServer(LOCAL, Twice)
    with serving(server):
        assert talk(server, b"") == b"one two"


def test_finish_may_be_called_after_the_files_were_closed(library):
    class Early(library.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"reply")
            self.wfile.close()
            self.rfile.close()

        def finish(self):
            super().finish()
            super().finish()

    server = library.TCPServer(LOCAL, Early)
    with serving(server):
        assert talk(server, b"") == b"reply"


class FakeSocket:
    """All that a stream handler may ask of a request."""

    def __init__(self):
        self.sent = b""

    def makefile(self, mode, size=-1):
        return io.BytesIO(b"line\n")

    def sendall(self, data):
        self.sent += bytes(data)


def test_a_stream_handler_needs_of_its_request_only_makefile_and_sendall(library, upper):
    request = FakeSocket()
    upper(request, None, None)
    assert request.sent == b"LINE\n"


def test_rfile_reads_from_the_socket_itself(library):
    class Handler(library.StreamRequestHandler):
        def handle(self):
            assert self.rfile.raw._sock is self.connection

    server = library.TCPServer(LOCAL, Handler)
    server.handle_error = lambda *_: pytest.fail("rfile is something else")
    with serving(server):
        assert talk(server, b"") == b""


def test_the_socket_writer_may_be_made_by_programs(library):
    request = FakeSocket()
    writer = library._SocketWriter(request)
    assert writer.writable()
    assert writer.write(memoryview(b"abcd").cast("H")) == 4
    assert (request.sent, writer._sock, writer.closed) == (b"abcd", request, False)
    assert isinstance(writer, io.BufferedIOBase)
    writer.close()
    assert writer.closed


def test_the_socket_writer_may_be_replaced_in_the_module(library, upper, monkeypatch):
    class Doubling(library._SocketWriter):
        def write(self, data):
            return super().write(data) + super().write(data)

    monkeypatch.setattr(library, "_SocketWriter", Doubling)
    server = library.TCPServer(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\nX\n"


def test_a_method_of_the_socket_writer_may_be_replaced(library, upper, monkeypatch):
    written, write = [], library._SocketWriter.write

    def checked(self, data):
        written.append(bytes(data))
        return write(self, data)

    monkeypatch.setattr(library._SocketWriter, "write", checked)
    server = library.TCPServer(LOCAL, upper)
    with serving(server):
        assert talk(server, b"x\n") == b"X\n"
    assert written == [b"X\n"]


def test_a_handler_finds_out_by_socket_type_whether_it_serves_a_stream(library):
    class Handler(library.BaseRequestHandler):
        def handle(self):
            assert self.server.socket_type == socket.SOCK_STREAM
            self.request.sendall(b"stream")

    server = library.TCPServer(LOCAL, Handler)
    with serving(server):
        assert talk(server, b"") == b"stream"


def test_module_globals_that_programs_reach_through_the_module_are_there(library):
    import os
    import time

    expected = {"os": os, "sys": sys, "socket": socket, "selectors": selectors, "threading": threading, "time": time.monotonic}
    assert {name: getattr(library, name) for name in expected} == expected
    assert library.BufferedIOBase is io.BufferedIOBase
