"""A hard bound of threads, and what happens beyond it."""

import contextvars
import socket
import threading

import pytest

from helpers import innards
from helpers.rooms import Rooms, answers, held
from socketkit import TCP, UDP, Classic, ConversationHandler, Graceful, Limits, Pool, Server
from socketkit.testing.clients import ask, talk

ANYWHERE = TCP("127.0.0.1", 0)


@pytest.fixture
def rooms():
    made = Rooms()
    yield made
    made.leave.set()


def serve(rooms, recipe):
    return Server(ANYWHERE, rooms, dispatcher=recipe, lifecycle=Graceful(drain=10)).start()


@pytest.mark.parametrize("workers", [0, -1, True, "32", 1.5])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1"):
        Pool(workers)


@pytest.mark.parametrize(
    "option", [{"defer": None}, {"defer": -1}, {"idle": -1}, {"max_inline": 0}, {"overflow": "drop"}, {"reply": b"x"}, {"connections": 0}]
)
def test_an_option_that_cannot_be_is_refused_by_name(option):
    with pytest.raises((ValueError, TypeError), match=next(iter(option))):
        Pool(**option)


def test_the_bound_is_hard_and_the_rest_waits_in_the_kernel(rooms):
    with serve(rooms, Pool(3)) as server:
        clients = [held(server, rooms) for _ in range(3)]
        late = socket.create_connection(server.addresses[0], timeout=0.2)
        late.sendall(b"fast")
        with pytest.raises(TimeoutError):
            late.recv(4)
        late.settimeout(10)
        assert server.stats().accepted == 3, "nothing was accepted that nobody could run"
        rooms.leave.set()
        assert answers(late)
        assert all(map(answers, clients))
        assert rooms.most == 3


def test_threads_start_when_all_others_are_busy(rooms):
    with serve(rooms, Pool(8)) as server:
        for _ in range(20):
            assert talk(server.addresses[0], b"fast") == b"done"
        quiet = len(innards.live(server)._threads)
        clients = [held(server, rooms) for _ in range(5)]
        assert len(innards.live(server)._threads) >= 6 > quiet
        rooms.leave.set()
        assert all(map(answers, clients))


def test_beyond_the_bound_clients_are_turned_away_with_a_word_if_so_asked(rooms):
    with serve(rooms, Pool(2, overflow="reject", reply="busy, come back\n")) as server:
        clients = [held(server, rooms) for _ in range(2)]
        for _ in range(3):
            assert talk(server.addresses[0], b"") == b"busy, come back\n"
        rooms.leave.set()
        assert all(map(answers, clients))
        refused = 3
        while (said := talk(server.addresses[0], b"fast")) == b"busy, come back\n":  # a client is answered before its thread is free
            refused += 1
        assert said == b"done"
        server.stop()
        assert server.stats().outcomes == {"refused": refused, "finished": 3}
        assert rooms.most == 2


def test_datagrams_are_bounded_and_turned_away_too():
    inside, leave = threading.Semaphore(0), threading.Event()

    def handler(request, client_address, server):
        data, sock = request
        if data == b"hold":
            inside.release()
            assert leave.wait(20)
        sock.sendto(data, client_address)

    pool = Pool(1, overflow="reject", reply="busy")
    with Server(UDP("127.0.0.1", 0), handler, dispatcher=pool, lifecycle=Graceful(drain=10)).start() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"hold", server.addresses[0])
            assert inside.acquire(timeout=10)
            assert ask(server.addresses[0], b"x") == b"busy"
            leave.set()
            assert client.recv(10) == b"hold"
        assert ask(server.addresses[0], b"y") in {b"y", b"busy"}


def test_a_conversation_under_way_is_never_turned_away(rooms):
    class Holding(ConversationHandler):
        def handle_one_request(self):
            line = self.rfile.readline()
            if line == b"hold\n":
                rooms.inside.release()
                assert rooms.leave.wait(20)
            self.wfile.write(line)

    with Server(ANYWHERE, Holding, dispatcher=Pool(1, overflow="reject"), lifecycle=Graceful(drain=10)).start() as server:
        begun = socket.create_connection(server.addresses[0], timeout=10)
        begun.sendall(b"one\n")
        assert begun.recv(10) == b"one\n"
        while innards.live(server)._busy:
            pass  # the thread is still on its way back from that request
        holding = socket.create_connection(server.addresses[0], timeout=10)
        holding.sendall(b"hold\n")
        assert rooms.inside.acquire(timeout=10)
        begun.sendall(b"two\n")
        begun.settimeout(0.2)
        with pytest.raises(TimeoutError):
            begun.recv(10)
        begun.settimeout(10)
        rooms.leave.set()
        assert begun.recv(10) == b"two\n"
        for client in (begun, holding):
            client.close()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_handler_raises_costs_one_request_and_no_thread(error, caplog):
    def handler(request, client_address, server):
        if request.recv(1) == b"!":
            raise error("on purpose")
        request.sendall(b"fine")

    with Server(ANYWHERE, handler, dispatcher=Pool(1), lifecycle=Graceful(drain=10)).start() as server:
        for _ in range(5):
            assert talk(server.addresses[0], b"!") == b""
        assert talk(server.addresses[0], b"?") == b"fine"
        assert len(innards.live(server)._threads) == 1


def test_context_variables_do_not_go_from_one_request_to_the_next():
    seen = []
    variable = contextvars.ContextVar("variable", default="fresh")

    def handler(request, client_address, server):
        seen.append(variable.get())
        variable.set("used")
        request.sendall(request.recv(10))

    with Server(ANYWHERE, handler, dispatcher=Pool(1), lifecycle=Graceful(drain=10)).start() as server:
        for _ in range(3):
            assert talk(server.addresses[0], b"x") == b"x"
    assert seen == ["fresh"] * 3


def test_nothing_is_left_after_a_stop(rooms):
    before = set(threading.enumerate())
    with serve(rooms, Pool(8)) as server:
        clients = [held(server, rooms) for _ in range(4)]
        rooms.leave.set()
        assert all(map(answers, clients))
        assert server.stop().stuck == ()
    assert set(threading.enumerate()) == before


# --- connections -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "limits", "force"),
    [
        (Pool(), Limits(), Limits()),
        (Pool(overflow="reject", reply="no"), Limits(), Limits()),
        (Pool(connections=5), Limits(), Limits(max_connections=5)),
        (Pool(connections=50), Limits(max_connections=7, overflow="reject"), Limits(max_connections=7)),
        (Pool(connections=5), Limits(max_connections=None), Limits(max_connections=5)),
        (Pool(overflow="shed"), Limits(max_connections=7, reply="x"), Limits(max_connections=7, overflow="shed")),
        (Pool(overflow="reject", connections=5, reply="no"), Limits(), Limits(max_connections=5, overflow="reject", reply="no")),
    ],
)
def test_a_bound_of_connections_is_that_of_the_servers_limits_or_a_lower_one(pool, limits, force):
    assert pool.start(None).narrow(limits) == force


class Echo(ConversationHandler):
    """Repeats lines."""

    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())


def said(server, line):
    client = socket.create_connection(server.addresses[0], timeout=10)
    client.sendall(line)
    return client


@pytest.mark.parametrize("overflow", ["wait", "reject", "shed"])
def test_what_becomes_of_a_connection_beyond_the_bound_is_the_overflow(overflow):
    recipe = Pool(4, overflow=overflow, connections=1, reply="full\n")
    with Server(ANYWHERE, Echo, dispatcher=recipe, lifecycle=Graceful(drain=10)).start() as server:
        with said(server, b"one\n") as first:
            assert first.recv(10) == b"one\n"
            while not innards.parked(server):
                pass
            with said(server, b"two\n") as second:
                if overflow == "wait":
                    while not innards.sources(server)[0].paused_for:
                        pass
                    first.close()
                try:
                    assert second.recv(10) == (b"full\n" if overflow == "reject" else b"two\n")
                except ConnectionResetError:
                    assert overflow == "reject"  # what it had sent was not read
                if overflow == "shed":
                    assert first.recv(10) == b""
    assert server.stats().outcomes == ({"finished": 2} if overflow == "wait" else {"finished": 1, "refused": 1})


def test_all_threads_serve_again_after_a_stop_that_left_the_dispatcher_to_the_next_run(rooms):
    with Server(ANYWHERE, rooms, dispatcher=Pool(4), lifecycle=Classic()) as server:
        for _ in range(2):
            server.start()
            clients = [held(server, rooms) for _ in range(4)]
            rooms.leave.set()
            assert all(map(answers, clients))
            server.stop()
            rooms.leave.clear()
        assert rooms.most == 4
        rooms.leave.set()
