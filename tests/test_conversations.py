"""Connections without a thread: before their first byte, and between the requests of a conversation."""

import contextlib
import errno
import http.client
import http.server
import select
import socket
import threading
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from functools import partial

import pytest

from helpers import innards
from helpers.support import python
from socketkit import TCP, Adaptive, Classic, ConversationHandler, Graceful, Pool, Server, StreamRequestHandler, Sync, Threads
from socketkit._engine.poller import EpollPoller

ANYWHERE = TCP("127.0.0.1", 0)


class Reverse(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline().rstrip(b"\n")
        if line == b"bye":
            self.close_connection = True
        if line == b"raise":
            raise ValueError("asked to")
        self.wfile.write(line[::-1] + b"\n")


@pytest.fixture(params=[Pool(1), Adaptive(workers=1)], ids=["pool", "adaptive"])
def parking(request):
    """Dispatchers that park, with one worker only: whatever waits without being parked would stop everything else."""
    return request.param


@pytest.fixture(params=[Sync(), Threads(), Pool(2), Adaptive()], ids=lambda each: type(each).__name__)
def dispatcher(request):
    return request.param


@contextlib.contextmanager
def served(handler, dispatcher, server=Server, **options):
    with server(ANYWHERE, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=5), **options) as running:
        running.start()
        yield running


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(server.addresses[0], timeout=10) as client, client.makefile("rwb") as file:
        yield client, file


def say(file, text):
    file.write(text)
    file.flush()


def test_a_conversation_is_the_same_under_every_dispatcher(dispatcher):
    with served(Reverse, dispatcher) as server, connected(server) as (_, file):
        for word in (b"one\n", b"two\n", b"three\n"):
            say(file, word)
            assert file.readline() == word.strip()[::-1] + b"\n"
        say(file, b"bye\n")
        assert file.readline() == b"eyb\n"
        assert file.readline() == b""


def test_a_conversation_is_the_same_under_the_standard_librarys_classes():
    import socketserver

    with socketserver.TCPServer(("127.0.0.1", 0), Reverse) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address) as client, client.makefile("rwb") as file:
            say(file, b"abc\nbye\n")
            assert file.read() == b"cba\neyb\n"
        thread.join()


def test_one_worker_holds_many_silent_and_many_idle_conversations(parking):
    set_up = threading.Semaphore(0)

    class Patient(Reverse):
        def setup(self):
            super().setup()
            set_up.release()

    with served(Patient, parking) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(server)) for _ in range(50)]
        talking = [stack.enter_context(connected(server)) for _ in range(50)]
        for round_ in range(3):
            for number, (_, file) in enumerate(talking):
                say(file, f"{number} {round_}\n".encode())
            for number, (_, file) in enumerate(talking):
                assert file.readline() == f"{number} {round_}".encode()[::-1] + b"\n"
        for _ in silent + talking:
            assert set_up.acquire(timeout=10)
        assert server.stats().active == 100


def test_requests_that_came_together_are_all_answered_in_order(parking):
    words = [f"word {number}" for number in range(100)]
    with served(Reverse, parking) as server, connected(server) as (_, file):
        say(file, "".join(f"{word}\n" for word in words).encode())
        assert [file.readline().decode() for _ in words] == [f"{word[::-1]}\n" for word in words]


def test_a_request_in_pieces_is_one_request(parking):
    with served(Reverse, parking) as server, connected(server) as (client, file):
        for piece in (b"a", b"b", b"c\nd"):
            client.sendall(piece)
        assert file.readline() == b"cba\n"
        client.sendall(b"e\n")
        assert file.readline() == b"ed\n"


def test_a_greedy_conversation_lets_others_go_first_after_its_share():
    order = []

    class Recording(Reverse):
        def handle_one_request(self):
            order.append(self.client_address)
            if len(order) == 1:
                both.wait(10)
            super().handle_one_request()

    both = threading.Event()
    with served(Recording, Pool(1, max_inline=3)) as server:
        with connected(server) as (greedy, first), connected(server) as (modest, second):
            say(first, b"x\n" * 9)
            while not order:
                pass
            say(second, b"y\n")
            both.set()
            assert second.readline() == b"y\n"
            assert [first.readline() for _ in range(9)] == [b"x\n"] * 9
            turns = [address == greedy.getsockname() for address in order]
            assert turns[:3] == [True] * 3
            assert turns.index(False) <= 6, "the other had to wait for more than two shares"
            assert modest.getsockname() in order


def test_an_error_ends_its_conversation_only(parking, caplog):
    with served(Reverse, parking) as server:
        with connected(server) as (_, file):
            say(file, b"raise\n")
            assert file.readline() == b""
        with connected(server) as (_, file):
            say(file, b"fine\n")
            assert file.readline() == b"enif\n"
        server.stop()
        assert server.stats().outcomes == {"failed": 1, "finished": 1}
    assert "asked to" in caplog.text


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")
def test_a_connection_that_the_system_will_not_watch_ends(parking, monkeypatch, caplog):
    """There are /proc/sys/fs/epoll/max_user_watches; source: epoll_ctl(2), ENOSPC."""
    refusals = []

    def refuse_once(poller, fileno, thing, arm=EpollPoller.arm):
        if refusals:
            raise refusals.pop()
        arm(poller, fileno, thing)

    monkeypatch.setattr(EpollPoller, "arm", refuse_once)
    with served(Reverse, parking) as server:
        refusals.append(OSError(errno.ENOSPC, "no watch to be had"))
        with connected(server) as (_, silent):
            assert silent.readline() == b""
        with connected(server) as (_, file):
            say(file, b"fine\n")
            assert file.readline() == b"enif\n"
            while not innards.parked(server):
                pass
            refusals.append(OSError(errno.ENOSPC, "no watch to be had"))
            say(file, b"more\n")
            assert file.readline() == b"erom\n"
            assert file.readline() == b""
        with connected(server) as (_, file):
            say(file, b"bye\n")
            assert file.readline() == b"eyb\n"
        server.stop()
        assert server.stats().outcomes == {"failed": 2, "finished": 1}
        assert server.stats().active == 0
    assert caplog.text.count("no watch to be had") == 2


def test_finish_runs_once_however_a_conversation_ends(parking):
    finished = threading.Semaphore(0)

    class Counting(Reverse):
        def finish(self):
            super().finish()
            finished.release()

    with served(Counting, parking) as server:
        for last_words in (b"bye\n", b"raise\n", b""):
            with connected(server) as (client, file):
                say(file, b"hello\n" + last_words)
                file.readline()
                client.shutdown(socket.SHUT_WR)
                file.read()
            assert finished.acquire(timeout=10)
        with connected(server) as (_, file):
            say(file, b"parked\n")
            file.readline()
            server.stop()
            assert file.readline() == b""
    assert finished.acquire(timeout=10)
    assert not finished.acquire(blocking=False)


def test_an_idle_conversation_is_closed_in_time_and_a_handlers_own_timeout_goes_first():
    for options, timeout in (({"idle": 0.05}, None), ({"idle": None}, 0.05)):
        handler = type("Timed", (Reverse,), {"timeout": timeout})
        for dispatcher in (Pool(1, **options), Adaptive(**options)):
            with served(handler, dispatcher) as server, connected(server) as (_, file):
                say(file, b"abc\n")
                assert file.readline() == b"cba\n"
                assert file.readline() == b""


def test_a_drain_closes_parked_conversations_at_once(parking):
    with served(Reverse, parking) as server, connected(server) as (_, idle), connected(server) as (_, silent):
        say(idle, b"abc\n")
        idle.readline()
        while server.stats().active < 2:
            pass  # the silent one may still be in the kernel's queue
        report = server.stop(drain=30)
        assert (report.forced, report.stuck) == (0, ())
        assert idle.readline() == silent.readline() == b""
    assert server.stats().active == 0


class Large(ConversationHandler):
    """Begins a reply that is too large for the socket's buffers, says so, and finishes it once its server is told to stop."""

    SIZE = 8_000_000
    begun = threading.Event()
    stopping = threading.Event()

    def handle_one_request(self):
        line = self.rfile.readline()
        if line == b"large\n":
            self.begun.set()
            assert self.stopping.wait(10)
            self.wfile.write(b"x" * self.SIZE)
        self.wfile.write(line)


def test_a_reply_is_not_cut_by_a_drain_because_its_client_had_sent_the_next_request(parking):
    Large.begun.clear()
    Large.stopping.clear()
    with served(Large, parking) as server, connected(server) as (client, file):
        client.sendall(b"large\n")
        assert Large.begun.wait(10)
        client.sendall(b"next\n")
        server.stop(wait=False)
        while not innards.intake(server).ending:
            pass
        Large.stopping.set()
        assert file.read() == b"x" * Large.SIZE + b"large\n" + b"next\n"
        report = server.stop()
    assert (report.finished, report.forced) == (1, 0)


def test_a_client_that_has_gone_is_asked_for_no_further_request_by_a_drain(parking):
    Large.begun.clear()
    Large.stopping.clear()
    with served(Large, parking) as server, connected(server) as (client, file):
        client.sendall(b"large\n")
        assert Large.begun.wait(10)
        client.shutdown(socket.SHUT_WR)
        server.stop(wait=False)
        Large.stopping.set()
        assert file.read() == b"x" * Large.SIZE + b"large\n"  # and no reply to a request that never was


def test_who_speaks_first_is_started_without_a_byte_and_at_once_if_it_says_so(parking):
    class Greeting(StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 ready\n")

    for speaks_first in (False, True):
        Greeting.speaks_first = speaks_first
        with served(Greeting, parking) as server, connected(server) as (_, file):
            assert file.readline() == b"220 ready\n"


def test_a_silent_client_does_not_hold_the_only_worker(parking):
    def one_line(request, client_address, server):
        request.sendall(request.recv(100))

    with served(one_line, type(parking)(1, defer=30)) as server, connected(server), connected(server) as (_, file):
        say(file, b"served\n")
        assert file.readline() == b"served\n"


def test_a_server_with_its_own_way_to_the_handler_keeps_it(parking):
    class Own(Server):
        def finish_request(self, request, client_address):
            steps.append("finish_request")
            super().finish_request(request, client_address)

    steps = []
    with served(Reverse, parking, Own) as server, connected(server) as (_, file):
        say(file, b"abc\nbye\n")
        assert file.read() == b"cba\neyb\n"
    assert steps == ["finish_request"]


def test_the_other_template_methods_are_used_for_conversations_too(parking):
    class Own(Server):
        def verify_request(self, request, client_address):
            steps.append("verify_request")
            return True

        def shutdown_request(self, request):
            steps.append("shutdown_request")
            super().shutdown_request(request)

        def handle_error(self, request, client_address):
            steps.append("handle_error")

    steps = []
    with served(Reverse, parking, Own) as server, connected(server) as (_, file):
        say(file, b"raise\n")
        file.read()
        server.stop()
    assert steps == ["verify_request", "handle_error", "shutdown_request"]


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.path} from {threading.current_thread().name}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_http_server_handlers_park_between_requests_unmodified(parking):
    with served(Page, parking) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(http.client.HTTPConnection(*server.addresses[0], timeout=10))) for _ in range(20)]
        for round_ in range(3):
            for client in clients:
                client.request("GET", f"/{round_}")
                assert client.getresponse().read().startswith(f"/{round_} from".encode())
        assert server.stats().active == 20


def test_http_connection_close_is_honoured(parking):
    with served(Page, parking) as server, connected(server) as (_, file):
        say(file, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /c HTTP/1.1\r\n\r\n")
        answer = file.read()
    assert b"/a from" in answer
    assert b"/b from" in answer
    assert b"/c from" not in answer


def test_a_partial_of_an_http_handler_parks_too(parking, tmp_path):
    (tmp_path / "page").write_text("hello")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

    with served(partial(Quiet, directory=str(tmp_path)), parking) as server:
        clients = [http.client.HTTPConnection(*server.addresses[0], timeout=10) for _ in range(3)]
        for client in clients * 2:
            client.request("GET", "/page")
            assert client.getresponse().read() == b"hello"
        for client in clients:
            client.close()


def test_xmlrpc_handlers_park_unmodified(parking):
    class Dispatching(Server, xmlrpc.server.SimpleXMLRPCDispatcher):
        def __init__(self, *args, **options):
            xmlrpc.server.SimpleXMLRPCDispatcher.__init__(self, allow_none=True)
            super().__init__(*args, **options)

        logRequests = False  # noqa: N815 - the name that the handler reads

    with served(xmlrpc.server.SimpleXMLRPCRequestHandler, parking, Dispatching) as server:
        server.register_function(lambda *numbers: sum(numbers), "add")
        host, port = server.addresses[0]
        proxies = [xmlrpc.client.ServerProxy(f"http://{host}:{port}") for _ in range(3)]
        for proxy in proxies * 2:
            assert proxy.add(1, 2, 3) == 6
        for proxy in proxies:
            proxy("close")()


def test_a_handle_that_is_no_known_loop_is_run_whole(parking):
    class Own(wsgiref.simple_server.WSGIRequestHandler):
        def handle(self):
            handled.append(self.rfile.readline())
            self.wfile.write(b"done")

    handled = []
    with served(Own, type(parking)(2)) as server, connected(server) as (_, file):
        say(file, b"hello\n")
        assert file.read() == b"done"
    assert handled == [b"hello\n"]


def test_ten_thousand_idle_conversations_cost_no_thread():
    python(
        """
import resource, socket, threading
from socketkit import *
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
count = 10_000 if hard >= 20_100 else 1_000
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
class Reverse(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline()[::-1])
with Server(TCP("127.0.0.1", 0), Reverse, lifecycle=Graceful(drain=10)) as server:
    server.start()
    clients = []
    for _ in range(count):
        client = socket.create_connection(server.addresses[0])
        client.sendall(b"ab\\n")
        assert client.recv(10) == b"\\nba"
        clients.append(client)
    assert server.stats().active == count
    assert threading.active_count() < 20, threading.enumerate()
    with socket.create_connection(server.addresses[0]) as fresh:
        fresh.sendall(b"cd\\n")
        assert fresh.recv(10) == b"\\ndc"
    report = server.stop()
    assert report.stuck == () and report.forced == 0, report
for client in clients:
    client.close()
""",
        guard=45,
    )


def test_a_conversation_whose_handler_closed_its_socket_is_over(parking):
    class Detaches(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline())
            socket.socket(fileno=self.request.detach()).close()

        def finish(self):
            finished.set()

    finished = threading.Event()
    with served(Detaches, parking) as server, connected(server) as (_client, file):
        say(file, b"hello\n")
        assert file.readline() == b"hello\n"
        assert file.readline() == b""
        assert finished.wait(10)
    assert server.stats().active == 0


def test_a_conversation_that_is_turned_away_is_finished():
    class Finishes(Reverse):
        def finish(self):
            finished.append(self.client_address)
            super().finish()

    finished = []
    reasons = []

    class Observer:
        def request_refused(self, _server, _address, reason):
            reasons.append(reason)

    with served(Finishes, Adaptive(), observers=[Observer()]) as server, connected(server) as (client, file):
        say(file, b"hello\n")
        assert file.readline() == b"olleh\n"
        intake = innards.intake(server)
        turned_away = threading.Event()

        def turn_away():
            for unit in intake.parked():
                unit.refuse("no room")
            turned_away.set()

        intake.call_soon(turn_away)
        assert turned_away.wait(10)
        assert file.readline() == b""
        assert finished == [client.getsockname()]
    assert [(each, each.kind) for each in reasons] == [("no room", "other")]
    assert server.stats().outcomes == {"refused": 1}


@pytest.mark.parametrize("again", [True, False], ids=["served again", "closed"])
def test_what_a_classic_lifecycle_leaves_parked_is_served_by_the_next_run_or_closed(parking, again):
    finished = threading.Event()

    class Finishes(Reverse):
        def finish(self):
            super().finish()
            finished.set()

    with Server(ANYWHERE, Finishes, dispatcher=parking, lifecycle=Classic()) as server:
        server.start()
        with connected(server) as (_client, file):
            say(file, b"abc\n")
            assert file.readline() == b"cba\n"
            while not innards.parked(server):
                pass
            server.stop()
            if again:
                server.start()
                say(file, b"def\n")
                assert file.readline() == b"fed\n"
                say(file, b"bye\n")
            else:
                server.server_close()
            assert finished.wait(10)
            assert file.read() in {b"", b"eyb\n"}
    assert server.stats().outcomes == {"finished": 1}
