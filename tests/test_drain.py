"""The end of a run: who had come is served, who comes later is refused, and nobody is waited for longer than was said."""

import contextlib
import http.client
import http.server
import os
import signal
import socket
import threading
import time

import pytest

from helpers import innards
from helpers.rooms import Rooms, answers, held
from helpers.support import python
from socketkit import TCP, Adaptive, Asyncio, ConversationHandler, Executor, Graceful, Pool, Server, StreamRequestHandler, Sync, Threads
from socketkit._engine.holdup import Holdup
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import Ledger
from socketkit._engine.stopping import Stopping
from socketkit.seams import InWork
from socketkit.testing import FakeClock
from socketkit.testing.clients import address
from socketkit.testing.programs import Program

ANYWHERE = TCP("127.0.0.1", 0)


class Upper(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())


@pytest.fixture
def rooms():
    made = Rooms()
    yield made
    made.leave.set()


def hold_back(server):
    """Have the server accept nobody from now on."""
    while innards.intake(server) is None:
        pass
    intake, held_back = innards.intake(server), threading.Event()
    intake.call_soon(lambda: (intake.hold(), held_back.set()))
    assert held_back.wait(10)


def waiting_clients(server, count, say=b"hello\n"):
    clients = [socket.create_connection(server.addresses[0], timeout=10) for _ in range(count)]
    for client in clients:
        client.sendall(say)
    return clients


def read_all(client):
    with client:
        return client.makefile("rb").read()


IN_PROCESS = [Sync(), Threads(), Pool(2), Adaptive(), Asyncio(), Executor("concurrent.futures:ThreadPoolExecutor")]


@pytest.mark.parametrize("dispatcher", IN_PROCESS, ids=lambda each: type(each).__name__)
def test_who_is_in_the_kernels_queue_at_the_stop_is_answered(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher, lifecycle=Graceful(drain=10)).start() as server:
        hold_back(server)
        clients = waiting_clients(server, 20)
        assert server.stats().accepted == 0
        report = server.stop()
        assert [read_all(client) for client in clients] == [b"HELLO\n"] * 20
    assert (report.finished, report.forced, report.stuck) == (20, 0, ())
    assert server.stats().outcomes == {"finished": 20}


def test_who_is_in_the_queue_of_a_server_that_forks_is_answered():
    python(
        """
import socket, threading
from helpers import innards
from socketkit import *
from socketkit.testing.clients import talk
class Upper(StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline().upper())
def serve():
    with server: server.serve_forever()
server = Server(TCP("127.0.0.1", 0), Upper, dispatcher=Forks(), lifecycle=Graceful(drain=10))
ready = threading.Event()
class Ready:
    def server_started(self, server): ready.set()
server._observe([Ready()])
def use():
    assert ready.wait(10)
    assert talk(server.addresses[0], b"hello\\n") == b"HELLO\\n"
    intake, held_back = innards.intake(server), threading.Event()
    intake.call_soon(lambda: (intake.hold(), held_back.set()))
    held_back.wait()
    clients = [socket.create_connection(server.addresses[0], timeout=10) for _ in range(20)]
    for client in clients: client.sendall(b"hello\\n")
    server.stop(wait=False)
    for client in clients:
        with client: got.append(client.makefile("rb").read())
got = []
user = threading.Thread(target=use)
user.start()
serve()
user.join()
assert got == [b"HELLO\\n"] * 20, got
assert server.stats().outcomes == {"finished": 21}, server.stats()
"""
    )


HELD_FORKS = """
import os
os.register_at_fork(after_in_child=lambda: os.read(0, 1), after_in_parent=lambda: print("forked", flush=True))  # before all others
from socketkit import *
from socketkit.dispatchers import forks
forks.UNSHARING = 30

class Upper(StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline().upper())
class Tells:
    def server_stopping(self, server): print("stopping", flush=True)

with Server(TCP("127.0.0.1", 0), Upper, dispatcher=Forks(), observers=[Tells()]) as server:
    print("serving", *server.urls, "()", flush=True)
    server.serve_forever()
"""


def test_who_comes_while_a_fresh_child_has_the_listener_still_is_answered():
    reader, writer = os.pipe()
    with Program.python("-c", HELD_FORKS, stdin=reader) as program, contextlib.ExitStack() as clients:
        [where] = map(address, program.serving())

        def client(text):
            connection = clients.enter_context(socket.create_connection(where, timeout=10))
            connection.sendall(text)
            return connection

        first = client(b"first\n")
        program.line("^forked")
        program.send_signal(signal.SIGTERM)
        program.line("^stopping")
        others = [client(b"other\n") for _ in range(50)]  # for longer than a server takes to close its listener
        os.write(writer, b"." * 51)
        assert [read_all(each) for each in (first, *others)] == [b"FIRST\n"] + [b"OTHER\n"] * 50
        assert program.wait() == 0
    os.close(reader)
    os.close(writer)


def test_who_is_in_the_queue_of_prefork_workers_is_answered():
    python(
        """
import os, signal, socket, threading
from socketkit import *
pids = []
class Hold(StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        self.wfile.write(b"%d\\n" % os.getpid())
        if line == b"hold\\n": self.rfile.readline()
server = Server(TCP("127.0.0.1", 0), Hold, dispatcher="prefork:2/sync", lifecycle=Graceful(drain=10))
class Ready:
    def worker_started(self, server, pid):
        pids.append(pid)
        if len(pids) == 2: ready.set()
ready = threading.Event()
server._observe([Ready()])
def use():
    assert ready.wait(10)
    busy = {}
    while len(busy) < 2:
        client = socket.create_connection(server.addresses[0], timeout=10)
        client.sendall(b"hold\\n")
        busy[int(client.makefile().readline())] = client
    clients = [socket.create_connection(server.addresses[0], timeout=10) for _ in range(20)]
    for client in clients: client.sendall(b"hello\\n")
    os.kill(os.getpid(), signal.SIGTERM)
    for client in busy.values(): client.sendall(b"go on\\n")
    for client in clients:
        with client: got.append(int(client.makefile().readline()))
got = []
user = threading.Thread(target=use, daemon=True)
user.start()
with server: server.serve_forever()
user.join()
assert len(got) == 20 and set(got) <= set(pids), got
assert server.stats().outcomes == {"finished": 22}, server.stats()
"""
    )


def test_the_listener_is_closed_although_every_worker_is_busy(rooms):
    with Server(ANYWHERE, rooms, dispatcher=Pool(1), lifecycle=Graceful(drain=10)).start() as server:
        address = server.addresses[0]
        busy = held(server, rooms)
        queued = waiting_clients(server, 3, b"fast")
        server.stop(wait=False)
        while True:  # until it is closed
            try:
                socket.create_connection(address, timeout=10).close()
            except ConnectionError:
                break
        rooms.leave.set()
        assert answers(busy)
        assert all(map(answers, queued))
        assert server.stop() is None or server.stats().active == 0


@pytest.mark.parametrize("dispatcher", [Sync(), Pool(1), Adaptive(1)], ids=lambda each: type(each).__name__)
def test_at_the_deadline_those_in_the_queue_are_cut_too(dispatcher):
    reads = threading.Semaphore(0)

    def blocks(request, client_address, server):
        reads.release()
        request.recv(1)  # more than the client sends
        request.recv(1)

    with Server(ANYWHERE, blocks, dispatcher=dispatcher, lifecycle=Graceful(drain=10)).start() as server:
        hold_back(server)
        clients = waiting_clients(server, 5, b"x")
        begin = time.monotonic()
        report = server.stop(drain=0.5)
        assert time.monotonic() - begin < 5
        assert report.forced == 5
        assert report.stuck == ()
        assert [read_all(client) for client in clients] == [b""] * 5
    assert sum(server.stats().outcomes.values()) == server.stats().accepted == 5
    assert server.stats().outcomes["refused"] == 4


@pytest.mark.parametrize("dispatcher", [Pool(1), Adaptive(1)], ids=lambda each: type(each).__name__)
def test_a_request_that_came_just_before_the_stop_is_answered_on_an_idle_conversation(dispatcher):
    class Echo(ConversationHandler):
        def handle_one_request(self):
            line = self.rfile.readline()
            if line == b"hold\n":
                inside.set()
                assert leave.wait(20)
            self.wfile.write(line)

    inside, leave = threading.Event(), threading.Event()
    with Server(ANYWHERE, Echo, dispatcher=dispatcher, lifecycle=Graceful(drain=10)).start() as server:
        idle, late, busy = (socket.create_connection(server.addresses[0], timeout=10) for _ in range(3))
        for client in (idle, late):
            client.sendall(b"hello\n")
            assert client.recv(10) == b"hello\n"
        busy.sendall(b"hold\n")
        assert inside.wait(10)
        late.sendall(b"late\n")
        server.stop(wait=False)
        assert idle.recv(10) == b""  # at once, and not only when the busy one is done
        leave.set()
        assert read_all(late) == b"late\n"
        assert read_all(busy) == b"hold\n"
        idle.close()
        server.stop()
    assert server.stats().outcomes == {"finished": 3}


def test_a_connection_without_a_first_byte_holds_up_no_stop_of_conversations():
    class Echo(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline())

    with Server(ANYWHERE, Echo, dispatcher=Adaptive(defer=0.2), lifecycle=Graceful(drain=30)).start() as server:
        silent = socket.create_connection(server.addresses[0], timeout=10)
        while not server.stats().active:
            pass
        begin = time.monotonic()
        report = server.stop()
        assert time.monotonic() - begin < 5
        assert report.forced == 0
        assert read_all(silent) == b""


@pytest.mark.parametrize("dispatcher", [Pool(2, defer=1.0), Adaptive(defer=1.0)], ids=lambda each: type(each).__name__)
def test_a_connection_that_is_accepted_as_the_stop_comes_is_answered(dispatcher):
    class StopsAsItAccepts(Server):
        def get_request(self):
            accepted = super().get_request()
            self.stop(wait=False)
            stopped.set()
            return accepted

    stopped = threading.Event()
    with StopsAsItAccepts(ANYWHERE, Upper, dispatcher=dispatcher, lifecycle=Graceful(drain=10)).start() as server:
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            assert stopped.wait(10)
            client.sendall(b"hello\n")
            assert client.recv(10) == b"HELLO\n"
        server.stop()
    assert server.stats().outcomes == {"finished": 1}


# --- HTTP, where a server can say that an answer is the last -----------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    """Answers on a connection that is kept alive; `/wait` only once it may, and `/late` is done only once it may."""

    protocol_version = "HTTP/1.1"
    inside, leave = threading.Event(), threading.Event()

    def do_GET(self):
        if self.path == "/wait":
            self.inside.set()
            assert self.leave.wait(20)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        if self.path == "/late":
            self.inside.set()
            assert self.leave.wait(20)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def page():
    return type("Page", (Page,), {"inside": threading.Event(), "leave": threading.Event()})


PARKING = pytest.mark.parametrize("dispatcher", [Pool(2), Adaptive()], ids=lambda each: type(each).__name__)


def serving(handler, dispatcher, **options):
    return Server(ANYWHERE, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=10, **options)).start()


def connection(server):
    return contextlib.closing(http.client.HTTPConnection(*server.addresses[0], timeout=10))


def get(client, path="/"):
    """Return the status of an answer, and whether it was said to be the last."""
    client.request("GET", path)
    answer = client.getresponse()
    answer.read()
    return answer.status, answer.headers.get_all("Connection", [])


def stopping(server):
    """Stop in another thread, and return that once the server is about to."""
    thread = threading.Thread(target=server.stop)
    thread.start()
    while server.ready:
        time.sleep(0.001)
    return thread


@PARKING
def test_an_http_client_is_told_that_the_answer_to_a_running_request_is_the_last(page, dispatcher):
    with serving(page, dispatcher) as server, connection(server) as client:
        assert get(client) == (200, [])
        client.request("GET", "/wait")
        assert page.inside.wait(10)
        thread = stopping(server)
        page.leave.set()
        answer = client.getresponse()
        assert (answer.read(), answer.headers["Connection"]) == (b"ok", "close")
        thread.join()


@PARKING
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/missing", 404)])
def test_an_http_client_that_was_just_answered_may_ask_once_more(page, dispatcher, path, status):
    with serving(page, dispatcher) as server, connection(server) as client:
        assert get(client) == (200, [])
        thread = stopping(server)
        assert get(client, path) == (status, ["close"])
        thread.join()
    assert server.stats().outcomes == {"finished": 1}


@PARKING
def test_an_http_client_whose_handler_is_not_done_with_the_last_request_may_ask_once_more(page, dispatcher, monkeypatch):
    waits, retire = threading.Event(), Intake.retire
    monkeypatch.setattr(Intake, "retire", lambda *arguments: (waits.set(), retire(*arguments)))
    with serving(page, dispatcher) as server, connection(server) as client:
        assert get(client, "/late") == (200, [])
        assert page.inside.wait(10)
        thread = stopping(server)
        assert waits.wait(10)
        page.leave.set()
        assert get(client) == (200, ["close"])
        thread.join()
    assert server.stats().outcomes == {"finished": 1}


@PARKING
def test_an_http_client_that_asks_no_more_is_waited_for_a_second_at_most(page, dispatcher):
    with serving(page, dispatcher) as server, connection(server) as client:
        assert get(client) == (200, [])
        report = server.stop()
        assert client.sock.recv(1) == b""
    assert (report.forced, report.stuck) == (0, ())


@PARKING
def test_an_http_client_that_has_been_idle_is_not_waited_for(page, dispatcher, monkeypatch):
    clock = FakeClock()
    with (
        Server(ANYWHERE, page, dispatcher=dispatcher, lifecycle=Graceful(drain=10), clock=clock).start() as server,
        connection(server) as client,
    ):
        assert get(client) == (200, [])
        while not innards.parked(server):
            time.sleep(0.001)
        clock.advance(2.0)
        monkeypatch.setattr("socketkit._engine.intake.Intake.retire", lambda *arguments: pytest.fail("it waits for somebody"))
        server.stop()
        assert client.sock.recv(1) == b""


@PARKING
def test_with_a_lame_duck_an_http_client_is_told_before_the_drain(page, dispatcher):
    with serving(page, dispatcher, lame_duck=60) as server, connection(server) as client:
        assert get(client) == (200, [])
        server.stop(wait=False)
        assert get(client) == (200, ["close"])
        assert client.sock is None
        server.stop(0)


@PARKING
def test_an_interim_answer_is_not_said_to_be_the_last(page, dispatcher):
    with serving(page, dispatcher, lame_duck=60) as server, socket.create_connection(server.addresses[0], timeout=10) as client:
        server.stop(wait=False)
        client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
        said = client.makefile("rb").read()
        assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert said.count(b"Connection: close") == 1
        server.stop(0)


def test_a_conversation_that_has_ended_is_not_kept_alive_by_what_it_says_at_its_end(page):
    import gc
    import weakref

    made = []

    class Noted(page):
        def setup(self):
            made.append(weakref.ref(self))
            super().setup()

    with serving(Noted, Adaptive()) as server, connection(server) as client:
        assert get(client) == (200, [])
        gc.disable()
        try:
            client.close()
            while not server.stats().outcomes:
                time.sleep(0.001)
            deadline = time.monotonic() + 10
            while made[0]() is not None and time.monotonic() < deadline:
                time.sleep(0.001)
            assert made[0]() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("dispatcher", [Pool(2), Adaptive(), Threads()], ids=lambda each: type(each).__name__)
def test_what_is_in_work_at_a_stop_is_known_with_its_time(rooms, dispatcher):
    lifecycle = Graceful(drain=30, lame_duck=5)
    with Server(ANYWHERE, rooms, dispatcher=dispatcher, lifecycle=lifecycle, clock=FakeClock()).start() as server:
        with held(server, rooms):
            run = innards.run(server)
            server.stop(wait=False)
            assert run.in_work() == InWork(1, 35.0)
            server.stop(drain=1, wait=False)
            assert run.in_work() == InWork(1, 1.0)
            rooms.leave.set()


def test_idle_conversations_are_not_in_work():
    class Echo(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline())

    with Server(ANYWHERE, Echo, dispatcher=Pool(2)).start() as server, socket.create_connection(server.addresses[0], timeout=10) as client:
        client.sendall(b"hello\n")
        assert client.recv(10) == b"hello\n"
        run = innards.run(server)
        while not run.intake.lot.parked:
            pass
        assert run.in_work().requests == 0


@pytest.mark.parametrize(
    ("number", "text"), [(0, "no request in work"), (1, "1 request in work, up to 0.5 s"), (2, "2 requests in work, up to 0.5 s")]
)
def test_what_is_in_work_can_be_said(number, text):
    assert str(InWork(number, 0.5)) == text


def test_handlers_of_each_run_learn_of_its_stop():
    seen = []

    def note(request, client_address, server):
        seen.append(server.stopping)
        request.sendall(b"x")

    with Server(ANYWHERE, note) as server:
        for _ in range(2):
            server.start()
            with socket.create_connection(server.addresses[0], timeout=10) as client:
                assert client.recv(1) == b"x"
            assert not seen[-1].is_set()
            server.stop()
            assert seen[-1].wait()
    assert seen[0] is not seen[1]


def test_a_stop_ends_every_wait_for_it():
    stopping, ended = Stopping(), []
    waiting = [threading.Thread(target=lambda: ended.append(stopping.wait(20))) for _ in range(5)]
    for thread in waiting:
        thread.start()
    for _ in range(2):
        stopping.set()
    for thread in waiting:
        thread.join()
    assert ended == [True] * 5


def test_a_handler_that_ends_as_soon_as_it_is_woken_counts_as_forced():
    class Request:
        def shutdown(self, _how):
            seen.append(len(holdup.woken))

    ledger, seen = Ledger(), []
    holdup = Holdup(ledger)
    ledger.admit(Request(), "peer").thread = 1
    ledger.admit(Request(), "of another thread").thread = 2
    for _ in range(2):
        holdup.wake(1, late=False)
    assert seen == [1], "it is counted before it can end, and woken once"
