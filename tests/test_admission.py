"""Who is let in: never one too many, nobody forgotten outside, and everybody in the books."""

import contextlib
import logging
import select
import socket
import threading

import pytest

from helpers import innards
from helpers.interleaving import Lock, schedules
from helpers.support import python, wait_until
from socketkit import (
    TCP,
    UDP,
    Adaptive,
    ConversationHandler,
    DatagramRequestHandler,
    Executor,
    Graceful,
    Limits,
    Pool,
    Server,
    StreamRequestHandler,
    Sync,
    Threads,
    UnixStream,
)
from socketkit._engine import admission
from socketkit._engine import ledger as stats
from socketkit._engine.accepting import FAILING, NO_ROOM, NoRoomError, Source
from socketkit._engine.admission import Admission
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import Entry, Ledger
from socketkit._engine.peers import Peers
from socketkit._engine.rate import Bucket
from socketkit._system.networks import Networks, number
from socketkit.testing import FakeClock
from socketkit.testing.clients import address, ask, talk

ANYWHERE = TCP("127.0.0.1", 0)
FULL = "max_connections is reached"
EARLY = "max_connections is nearly reached, and this client was among those chosen to be refused"
CONCURRENT = [Threads(), Pool(8), Adaptive(), Executor()]


class Echo(ConversationHandler):
    """Repeats lines."""

    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())


class Plain(StreamRequestHandler):
    """The same in one piece."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Whole(DatagramRequestHandler):
    """Tells how long a datagram is."""

    def handle(self):
        self.wfile.write(b"%d" % len(self.packet))


class Watcher:
    """Notes why requests were refused, and the most that were open at a time."""

    def __init__(self):
        self.reasons, self.most = [], 0

    def request_accepted(self, server, request, client_address):
        self.most = max(self.most, server.stats().active)

    def request_refused(self, server, client_address, reason):
        self.reasons.append(reason)


class Client:
    """One conversation."""

    def __init__(self, server, source=None):
        where = address(server.urls[0])
        self.socket = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        self.socket.settimeout(10)
        if source is not None:
            self.socket.bind((source, 0))
        self.socket.connect(where)

    def say(self, line):
        self.socket.sendall(line)
        return self

    def hears(self):
        try:
            return self.socket.recv(100)
        except ConnectionResetError:  # what it had sent was not read
            return b""

    def close(self):
        self.socket.close()


@pytest.fixture(params=["tcp", "unix"])
def served(request, tmp_path):
    """A function that serves, and one that makes clients; both are cleaned up."""
    with contextlib.ExitStack() as stack:

        def serve(limits, handler=Echo, dispatcher=None):
            transport = ANYWHERE if request.param == "tcp" else UnixStream(str(tmp_path / "socket"))
            lifecycle = Graceful(drain=5)
            server = Server(transport, handler, dispatcher=dispatcher, lifecycle=lifecycle, limits=limits, observers=[watcher := Watcher()])
            server.watcher = watcher
            stack.enter_context(server)
            return server.start()

        def client(server):
            return stack.enter_context(contextlib.closing(Client(server)))

        yield serve, client


def is_suspended(server):
    return any(NO_ROOM in source.paused_for for source in innards.sources(server))


# --- the cap -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", CONCURRENT, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("handler", [Echo, Plain])
def test_no_more_connections_are_accepted_than_may_be_open(served, dispatcher, handler):
    serve, client = served
    server = serve(Limits(max_connections=2), handler, dispatcher)
    first, second = client(server), client(server)
    assert [each.say(b"one\n").hears() for each in (first, second)] == [b"one\n"] * 2
    third = client(server).say(b"late\n")
    wait_until(lambda: is_suspended(server))
    assert server.stats().accepted == 2
    assert first.say(b"two\n").hears() == b"two\n", "those that are open go on"
    assert select.select([third.socket], [], [], 0)[0] == []
    second.close()
    assert third.hears() == b"late\n"
    for each in (first, third):
        each.close()
    server.stop()
    assert server.stats().outcomes == {"finished": 3}
    assert server.watcher.most == 2


@pytest.mark.parametrize("policy", ["max_connections=2", "max_per_peer=2"])
def test_fork_counts_a_connection_until_its_child_has_ended(policy):
    python(f"""
import socket
from helpers import innards
from socketkit import *
def hold(request, client_address, server):
    request.sendall(request.recv(10))
    request.recv(10)
class Watcher:
    most, reasons = 0, []
    def request_accepted(self, server, request, client_address):
        self.most = max(self.most, server.stats().active)
    def request_refused(self, server, client_address, reason):
        self.reasons.append(reason)
watcher = Watcher()
server = Server(TCP("127.0.0.1", 0), hold, dispatcher=Forks(8), limits={policy!r}, observers=[watcher], lifecycle=Graceful(drain=5))
with server.start():
    clients = []
    for number in range(3):
        clients.append(socket.create_connection(server.addresses[0], timeout=20))
        clients[-1].sendall(b"hello")
        if number < 2: assert clients[-1].recv(10) == b"hello"
    if {policy!r} == "max_per_peer=2":
        try: assert clients[2].recv(10) == b""
        except ConnectionResetError: pass
        assert watcher.reasons == ["max_per_peer is reached"]
        clients[0].send(b"go")
        assert clients[0].recv(10) == b""
        while not server.stats().outcomes.get("finished"): pass
        clients.append(socket.create_connection(server.addresses[0], timeout=20))
        clients[3].sendall(b"hello")
        assert clients[3].recv(10) == b"hello"
    else:
        while 'no room' not in innards.sources(server)[0].paused_for: pass
        clients[0].send(b"go")
        assert clients[2].recv(10) == b"hello"
        assert watcher.most == 2
    for client in clients[1:]:
        try: client.send(b"go")
        except ConnectionError: pass
    server.stop()
assert server.stats().outcomes["finished"] == 3, server.stats()
""")


def test_asyncio_keeps_to_the_cap_with_coroutines_too():
    python("""
import socket
from socketkit import *
class Echo(AsyncStreamRequestHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(line)
class Watcher:
    most = 0
    def request_accepted(self, server, request, client_address):
        self.most = max(self.most, server.stats().active)
watcher = Watcher()
server = Server(TCP("127.0.0.1", 0), Echo, dispatcher=Asyncio(), limits=Limits(max_connections=2), observers=[watcher])
with server.start():
    clients = [socket.create_connection(server.addresses[0], timeout=10) for _ in range(5)]
    for client in clients:
        client.sendall(b"hello\\n")
    for client in clients:
        assert client.recv(10) == b"hello\\n"
        client.close()
    server.stop()
assert watcher.most == 2
assert server.stats().outcomes == {"finished": 5}, server.stats()
""")


@pytest.mark.parametrize("dispatcher", [Sync(), *CONCURRENT], ids=lambda each: type(each).__name__)
def test_a_connection_beyond_the_cap_is_turned_away_with_a_word_if_so_asked(served, dispatcher):
    serve, client = served

    class Held(StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline())
            if not isinstance(dispatcher, Sync):
                self.rfile.read()

    server = serve(Limits(max_connections=1, overflow="reject", reply="full\n"), Held, dispatcher)
    first = client(server).say(b"one\n")
    assert first.hears() == b"one\n"
    if isinstance(dispatcher, Sync):  # which has one at a time anyway
        assert client(server).say(b"two\n").hears() == b"two\n"
        return
    assert client(server).hears() == b"full\n"
    assert server.watcher.reasons == ["max_connections is reached"]
    first.close()
    wait_until(lambda: not server.stats().active)
    assert client(server).say(b"three\n").hears() == b"three\n"


def test_the_conversation_that_was_idle_longest_makes_room_for_a_new_one(served, caplog):
    caplog.set_level(logging.INFO)
    serve, client = served
    server = serve(Limits(max_connections=3, overflow="shed"))
    clients = []
    for count in (1, 2, 3):
        clients.append(client(server))
        assert clients[-1].say(b"one\n").hears() == b"one\n"
        wait_until(lambda count=count: len(innards.parked(server)) == count)
    assert clients[0].say(b"more\n").hears() == b"more\n"
    wait_until(lambda: len(innards.parked(server)) == 3)
    assert client(server).say(b"new\n").hears() == b"new\n"
    assert clients[1].hears() == b""
    assert [clients[number].say(b"on\n").hears() for number in (0, 2)] == [b"on\n"] * 2
    assert server.watcher.reasons == ["closed while idle, to make room for another connection"]
    assert server.watcher.most == 3
    server.stop()
    assert server.stats().outcomes == {"refused": 1, "finished": 3}
    [line] = [record.getMessage() for record in caplog.records if record.name == "socketkit.limits"]
    assert line.endswith(" by limits.max_connections: closed while idle, to make room for another connection")


def test_nobody_is_closed_to_make_room_for_nobody(served):
    serve, client = served
    server = serve(Limits(max_connections=2, overflow="shed"))
    clients = [client(server) for _ in range(2)]
    for _ in range(3):
        assert [each.say(b"on\n").hears() for each in clients] == [b"on\n"] * 2
    server.stop()
    assert server.stats().outcomes == {"finished": 2}


def test_with_none_idle_a_connection_waits_and_gets_in_when_one_is(served):
    serve, client = served
    inside, leave = threading.Semaphore(0), threading.Event()

    class Holds(ConversationHandler):
        def handle_one_request(self):
            line = self.rfile.readline()
            if line == b"hold\n":
                inside.release()
                assert leave.wait(20)
            self.wfile.write(line)

    server = serve(Limits(max_connections=2, overflow="shed"), Holds)
    busy = [client(server).say(b"hold\n") for _ in range(2)]
    for _ in busy:
        assert inside.acquire(timeout=10)
    late = client(server).say(b"late\n")
    wait_until(lambda: is_suspended(server))
    assert server.stats().accepted == 2
    leave.set()
    assert late.hears() == b"late\n"
    assert [each.hears() for each in busy] == [b"hold\n"] * 2
    assert server.watcher.most == 2


def test_a_stop_is_not_held_up_by_clients_who_wait_outside(served):
    serve, client = served
    server = serve(Limits(max_connections=1))
    first, second = client(server), client(server)
    assert first.say(b"one\n").hears() == b"one\n"
    wait_until(lambda: is_suspended(server))
    assert server.stop(drain=1).stuck == ()
    assert first.hears() == b""
    second.close()


def test_other_listeners_wait_with_the_one_that_is_full_and_datagrams_do_not():
    class Both:
        def __init__(self, request, client_address, server):
            if isinstance(request, tuple):
                request[1].sendto(b"datagram", client_address)
            else:
                request.sendall(request.recv(10))
                request.recv(1)

    with Server([ANYWHERE, ANYWHERE, UDP("127.0.0.1", 0)], Both, lifecycle=Graceful(drain=5), limits="max_connections=1").start() as server:
        one, other, third = server.addresses
        with socket.create_connection(one, timeout=10) as first, socket.create_connection(other, timeout=10) as second:
            first.sendall(b"first")
            assert first.recv(10) == b"first"
            second.sendall(b"second")
            wait_until(lambda: is_suspended(server))
            for _ in range(3):
                assert ask(third, b"?") == b"datagram"
            assert [NO_ROOM in source.paused_for for source in innards.sources(server)] == [True, True, False]
            wait_until(lambda: server.stats().outcomes == {"finished": 3})
            first.close()
            assert second.recv(10) == b"second"
            assert ask(third, b"?") == b"datagram"


def test_a_listener_that_rests_and_is_suspended_takes_up_again_when_it_is_neither():
    clock = FakeClock()

    class Door(Source):
        url = "door"

        def __init__(self):
            self.reader, self.writer = socket.socketpair()
            self.writer.send(b"x")
            self.outcome = None

        def fileno(self):
            return self.reader.fileno()

        def take(self):
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

    doors = [Door(), Door()]
    with Intake(doors, clock=clock) as intake, contextlib.ExitStack() as stack:
        for door in doors:
            stack.callback(door.reader.close)
            stack.callback(door.writer.close)
        doors[0].outcome = OSError(24, "no descriptors")
        doors[1].outcome = NoRoomError(doors)
        assert intake.take(0) is None
        assert [door.paused_for for door in doors] == [{FAILING, NO_ROOM}, {NO_ROOM}]
        for door in doors:
            door.outcome = lambda: None
        intake.accepting.resume(NO_ROOM, doors)
        assert [door.registered != -1 for door in doors] == [False, True], "one that rests goes on resting"
        doors[1].outcome = NoRoomError(doors)
        assert intake.take(0) is None
        clock.advance(0.2)
        assert intake.take(0) is None
        assert [door.registered for door in doors] == [-1, -1], "one that is suspended stays so when it has rested"
        intake.hold()
        intake.accepting.resume(NO_ROOM, doors)
        assert [door.registered for door in doors] == [-1, -1], "whoever holds has not released"
        doors[1].outcome = lambda: None
        intake.release()
        assert intake.take(0) is not None


def test_the_cap_holds_in_a_throng_and_everybody_gets_in():
    """A storm of connections against each policy; see F9 of the contract."""
    python(
        """
import resource, socket, sys, threading
from socketkit import *
sys.setswitchinterval(1e-5)
class Echo(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())
class Plain(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())
class Watcher:
    most = 0
    def request_accepted(self, server, request, client_address):
        self.most = max(self.most, server.stats().active)
for overflow in ("wait", "shed"):
    for handler in (Echo, Plain):
        for dispatcher in (Pool(3), Adaptive(), Threads(), Executor()):
            watcher = Watcher()
            limits = Limits(max_connections=5, overflow=overflow)
            server = Server(TCP("127.0.0.1", 0), handler, dispatcher=dispatcher, lifecycle=Graceful(drain=10), limits=limits, observers=[watcher])
            with server.start():
                wrong, heard, lost = [], [], []
                def client(number):
                    for turn in range(20):
                        with socket.create_connection(server.addresses[0], timeout=20) as one:
                            line = b"%d %d\\n" % (number, turn)
                            try:
                                one.sendall(line)
                                back = one.recv(100)
                            except ConnectionError:
                                back = b""
                            (heard if back == line else wrong if back else lost).append(line)
                threads = [threading.Thread(target=client, args=(number,)) for number in range(9)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                assert not wrong and not lost, (wrong, lost)  # who has asked is not idle
                report = server.stop()
            assert report.stuck == () and report.forced == 0, report
            assert watcher.most <= 5, watcher.most
            outcomes = dict(server.stats().outcomes)
            assert sum(outcomes.values()) == 180 and set(outcomes) <= {"finished", "refused"}, outcomes
""",
        guard=50,
    )


@pytest.mark.parametrize("overflow", ["wait", "reject"])
def test_five_thousand_connections_never_open_more_than_the_cap(overflow):
    python(
        f"""
import socket, threading
from socketkit import *
from socketkit.testing import *
class Watcher:
    most = 0
    def request_accepted(self, server, request, client_address):
        self.most = max(self.most, server.stats().active)
now, most, lock, full, leave = 0, 0, threading.Lock(), threading.Event(), threading.Event()
def handle(request, client_address, server):
    global now, most
    with lock:
        now += 1
        most = max(most, now)
        if now == 100: full.set()
    assert leave.wait(30)
    with lock:
        now -= 1
    try:
        request.sendall(b"served")
    except ConnectionError:
        pass
watcher = Watcher()
limits = Limits(max_connections=100, overflow={overflow!r}, reply="full")
server = Server(TCP("127.0.0.1", 0), handle, dispatcher=Threads(), lifecycle=Graceful(drain=20), limits=limits, observers=[watcher])
with server.start():
    clients, results = [], []
    for _ in range(100):
        client = socket.create_connection(server.addresses[0], timeout=30)
        client.sendall(b"x")
        clients.append(client)
    assert full.wait(10)
    def storm():
        for _ in range(1225):
            with socket.create_connection(server.addresses[0], timeout=30) as client:
                results.append(client.recv(10))
    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads: thread.start()
    if {overflow!r} == "wait":
        leave.set()
    for thread in threads: thread.join()
    leave.set()
    for client in clients:
        assert client.recv(10) == b"served"
        client.close()
    server.stop()
assert set(results) == ({{b"served"}} if {overflow!r} == "wait" else {{b"full"}}), set(results)
assert most == 100
assert watcher.most == (100 if {overflow!r} == "wait" else 101), watcher.most  # one that is turned away is in the books for that long
stats = server.stats()
assert stats.active == 0 and stats.accepted == sum(stats.outcomes.values()) == 5000, stats
""",
        guard=55,
    )


# --- nobody is forgotten -----------------------------------------------------------------------------------------------------------


class Gate:
    """A source of connections, with an intake that only notes."""

    counted = True

    def __init__(self):
        self.intake = self.lot = self.accepting = self
        self.soon, self.resumed = [], 0
        self.parked_one, self.idle = None, None
        self.reader, self.writer = socket.socketpair()
        self.writer.send(b"x")  # somebody waits

    def fileno(self):
        return self.reader.fileno()

    def call_soon(self, callback):
        self.soon.append(callback)

    def resume(self, _reason, _doors):
        self.resumed += 1

    def longest(self):
        idle, self.idle = self.idle, None
        return idle

    def again(self, unit):
        self.again_with = unit

    def park(self, unit):
        """As `Intake.park`."""
        self.idle = unit
        parked_one = self.parked_one
        if parked_one is not None:
            self.parked_one = None
            parked_one()

    def close(self):
        self.reader.close()
        self.writer.close()


class Unit:
    def evict(self, reason):
        self.reason = reason


@pytest.fixture
def gate():
    with contextlib.closing(Gate()) as made:
        yield made


def books():
    ledger = Ledger()
    ledger._lock = Lock()
    return ledger


def permitted(asked, door):
    try:
        asked.permit(door)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("first", ["ask", "settle"])
def test_whoever_was_told_to_wait_is_asked_again_however_asking_and_settling_interleave(first, gate):
    def make():
        ledger, request = books(), object()
        gate.soon.clear()
        ledger.admit(request, "peer")
        return Admission(Limits(max_connections=1), ledger, [gate]), ledger, request

    def ask(asked, _ledger, _request):
        return permitted, asked, gate

    def settle(_asked, ledger, request):
        return ledger.settle, request

    seen = set()
    for asked, ledger, _request, *results in schedules((admission, stats), make, *((ask, settle) if first == "ask" else (settle, ask))):
        permit = results[0 if first == "ask" else 1]
        assert permit or gate.soon == [asked._resume]
        if permit:
            ledger.admit(object(), "another")
        assert not permit or len(ledger.in_work) == 1
        seen.add(permit)
    assert seen == {True, False}


@pytest.mark.parametrize("first", ["settle", "other"])
def test_a_word_that_is_taken_away_late_leaves_nobody_suspended(first, gate):
    """Two requests end at once, and between the two of them the room is taken again."""

    def make():
        ledger, requests = books(), (object(), object())
        gate.soon.clear()
        for request in requests:
            ledger.admit(request, "peer")
        asked = Admission(Limits(max_connections=2), ledger, [gate])
        assert not permitted(asked, gate)
        return asked, ledger, requests

    def settle(_asked, ledger, requests):
        return ledger.settle, requests[0]

    def other(asked, ledger, requests):
        def run():
            ledger.settle(requests[1])
            ledger.admit(object(), "another")
            ledger.admit(object(), "and one more")
            return permitted(asked, gate)

        return (run,)

    for _asked, ledger, _requests, *results in schedules(stats, make, *((settle, other) if first == "settle" else (other, settle))):
        permit = results[1 if first == "settle" else 0]
        assert permit or gate.soon or ledger.vacated is not None


@pytest.mark.parametrize("first", ["ask", "park"])
def test_whoever_waits_for_an_idle_conversation_finds_one_however_asking_and_parking_interleave(first, gate):
    import sys

    here = sys.modules[__name__]

    def make():
        ledger = books()
        gate.soon.clear()
        gate.idle = gate.parked_one = None
        ledger.admit(object(), "peer")
        return Admission(Limits(max_connections=1, overflow="shed"), ledger, [gate]), Unit()

    def ask(asked, _unit):
        return permitted, asked, gate

    def park(_asked, unit):
        return gate.park, unit

    seen = set()
    for _asked, unit, *_results in schedules((admission, here), make, *((ask, park) if first == "ask" else (park, ask))):
        evicted = hasattr(unit, "reason")
        assert evicted or gate.soon
        seen.add(evicted)
    assert seen == {True, False}


def test_an_entry_that_a_layer_replaces_is_counted_once():
    ledger, first = books(), object()
    ledger.admit(first, "peer")

    def make():
        return (object(),)

    for wrapped, count, _none in schedules(stats, make, lambda _: (ledger.connections,), lambda wrapped: (ledger.replace, first, wrapped)):
        assert count == 1
        ledger.replace(wrapped, first)


# --- chance ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "refused"), [(0, 0), (5, 0), (6, 20), (7, 40), (8, 60), (9, 80), (10, 100), (11, 100)], ids=str)
def test_ever_more_are_turned_away_the_fewer_may_still_be_open(count, refused, gate):
    ledger, draws = books(), iter([(each + 0.5) / 100 for each in range(100)])
    for each in range(count):
        ledger.admit(each, "peer")
    asked = Admission(Limits(max_connections=10, overflow="early"), ledger, [gate], lambda: next(draws))
    assert permitted(asked, gate), "nobody waits"
    reasons = [asked.objection(Source(), object(), "another") for _ in range(100)]
    assert 100 - reasons.count(None) == refused
    assert set(reasons) - {None} == ({EARLY} if 0 < refused < 100 else {FULL} if refused else set())


@pytest.mark.parametrize("overflow", ["wait", "reject", "shed"])
def test_nothing_is_left_to_chance_unless_it_was_asked_for(overflow, gate):
    ledger = books()
    for each in range(9):
        ledger.admit(each, "peer")
    asked = Admission(Limits(max_connections=10, overflow=overflow), ledger, [gate], lambda: 0.0)
    assert asked.objection(Source(), object(), "another") is None


def test_datagrams_are_not_turned_away_by_chance(gate):
    ledger = books()
    for each in range(9):
        ledger.admit(each, "peer")
    asked = Admission(Limits(max_connections=10, overflow="early"), ledger, [gate], lambda: 0.0)
    datagrams = Source()
    datagrams.counted = False
    assert asked.objection(datagrams, (b"data", None), "peer") is None


def test_whom_chance_is_against_gets_a_word_and_one_before_the_start_never(served, monkeypatch):
    serve, client = served
    monkeypatch.setattr("random.random", lambda: 0.0)
    server = serve(Limits(max_connections=4, overflow="early", early=0.25, reply="perhaps later\n"))
    first, second = client(server), client(server)
    assert [each.say(b"one\n").hears() for each in (first, second)] == [b"one\n"] * 2
    assert client(server).hears() == b"perhaps later\n"
    assert server.watcher.reasons == [EARLY]
    second.close()
    wait_until(lambda: server.stats().active == 1)
    assert client(server).say(b"again\n").hears() == b"again\n"
    first.close()
    server.stop()
    assert server.stats().outcomes == {"finished": 3, "refused": 1}


# --- peers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("127.0.0.1", (32, 0x7F000001)),
        ("::ffff:127.0.0.1", (32, 0x7F000001)),
        ("::1", (128, 1)),
        ("fe80::1%lo", (128, (0xFE80 << 112) + 1)),
    ],
)
def test_an_address_is_a_number_and_a_mapped_one_that_of_its_v4_form(text, same):
    assert number((text, 80)) == same


@pytest.mark.parametrize("unix", ["", None, b"\0name", "/run/x.sock", ("no address", 1), (5, 1)])
def test_what_is_no_internet_address_has_none(unix):
    assert number(unix) is None


def test_a_network_is_looked_up_by_its_bits():
    some = Networks(("10.0.0.0/8", "2001:db8::/32", "192.0.2.7"))
    inside = ("10.255.1.2", "::ffff:10.0.0.1", "2001:db8:5::1", "192.0.2.7")
    outside = ("11.0.0.0", "192.0.2.8", "2001:db9::1", "::a00:1")
    assert [number((each, 0)) in some for each in (*inside, *outside)] == [True] * 4 + [False] * 4


def test_the_table_of_peers_forgets_those_who_have_left():
    peers = Peers(Limits(max_per_peer=3, v4_prefix=24))
    entries = [Entry(object(), (f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", 1), 0.0) for number in range(100_000)]
    for entry in entries[:50_000]:
        peers.enter(entry)
    assert len(peers) == 50_000
    for entry, other in zip(entries[:50_000], entries[50_000:], strict=True):
        peers.leave(entry)
        peers.enter(other)
        assert len(peers) <= 50_000
    for entry in entries[50_000:]:
        peers.leave(entry)
        peers.leave(entry)
    assert len(peers) == len(peers._entries) == 0


def test_neighbours_of_one_prefix_are_one_peer_and_datagrams_and_unix_peers_none():
    peers = Peers(Limits(max_per_peer=2, v4_prefix=24))

    def is_full(client_address):
        return peers.objection(client_address, counted=True) is not None

    for host in ("192.0.2.1", "192.0.2.200"):
        peers.enter(Entry(object(), (host, 1), 0.0))
    assert is_full(("192.0.2.77", 9))
    assert is_full(("::ffff:192.0.2.77", 9))
    assert not is_full(("192.0.3.77", 9))
    for unix in ("", None):
        for _ in range(5):
            peers.enter(Entry(object(), unix, 0.0))
        assert not is_full(unix)
    for _ in range(5):
        peers.enter(Entry((b"", None), ("198.51.100.1", 1), 0.0))
    assert len(peers) == 1


@pytest.mark.parametrize("dispatcher", CONCURRENT, ids=lambda each: type(each).__name__)
def test_one_peer_cannot_take_what_is_anothers(dispatcher):
    server = Server(
        TCP("127.0.0.1", 0),
        Plain,
        dispatcher=dispatcher,
        lifecycle=Graceful(drain=5),
        limits=Limits(max_per_peer=2, reply="enough\n"),
        observers=[watcher := Watcher()],
    )
    with server.start(), contextlib.ExitStack() as stack:

        def client(source):
            return stack.enter_context(contextlib.closing(Client(server, source)))

        mine = [client("127.0.0.1").say(b"mine\n") for _ in range(2)]
        assert [each.hears() for each in mine] == [b"mine\n"] * 2
        assert client("127.0.0.1").hears() == b"enough\n"
        assert client("127.0.0.2").say(b"yours\n").hears() == b"yours\n"
        assert watcher.reasons == ["max_per_peer is reached"]
        mine[0].close()
        wait_until(lambda: innards.ledger(server).peers._counts[32, 0x7F000001] == 1)
        assert client("127.0.0.1").say(b"again\n").hears() == b"again\n"
    assert len(innards.ledger(server).peers) == 0


def test_unix_peers_are_many(tmp_path):
    with Server(UnixStream(str(tmp_path / "s")), Echo, limits=Limits(max_per_peer=1, allow=["10.0.0.0/8"])).start() as server:
        clients = [Client(server).say(b"x\n") for _ in range(3)]
        assert [each.hears() for each in clients] == [b"x\n"] * 3
        for each in clients:
            each.close()


@pytest.mark.parametrize(
    ("limits", "enters"),
    [
        (Limits(allow=["127.0.0.0/8"]), True),
        (Limits(allow=["10.0.0.0/8"]), False),
        (Limits(deny=["127.0.0.1"]), False),
        (Limits(deny=["127.0.0.2"]), True),
        (Limits(allow=["127.0.0.0/8"], deny=["127.0.0.0/24"]), False),
        (Limits(allow=["::ffff:127.0.0.1"]), False),
    ],
)
def test_peers_come_from_networks_that_are_allowed(limits, enters):
    with Server(ANYWHERE, Echo, limits=limits, observers=[watcher := Watcher()]).start() as server:
        if enters:
            assert talk(server.addresses[0], b"hello\n") == b"hello\n"
        else:
            with contextlib.closing(Client(server)) as client:
                assert client.hears() == b""
            assert watcher.reasons == ["the client's network is not allowed"]
    assert server.stats().outcomes == {"finished" if enters else "refused": 1}


def test_datagrams_come_from_networks_that_are_allowed():
    with Server(UDP("127.0.0.1", 0), Whole, limits=Limits(deny=["127.0.0.1"], reply="no")).start() as server:
        assert ask(server.addresses[0], b"?") == b"no"
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.settimeout(10)
            other.bind(("127.0.0.2", 0))
            other.sendto(b"12345", server.addresses[0])
            assert other.recv(10) == b"5"
    assert server.stats().outcomes == {"refused": 1, "finished": 1}


# --- rate --------------------------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_what_flows_into_it_and_no_more_at_once_than_it_holds():
    clock = FakeClock()
    bucket, taken = Bucket(10.0, 3, clock), 0
    for _ in range(100):
        while not bucket.due():
            bucket.take()
            taken += 1
        clock.advance(0.05)
    assert taken == 3 + 49
    clock.advance(1000)
    while not bucket.due():
        bucket.take()
        taken += 1
    assert taken == 3 + 49 + 3
    assert bucket.due() == pytest.approx(0.1)


@pytest.mark.parametrize("transport", [ANYWHERE, UDP("127.0.0.1", 0)], ids=["tcp", "udp"])
def test_no_more_is_taken_in_a_second_than_the_rate_says(transport):
    clock = FakeClock()
    handler = Whole if transport.kind == "datagram" else Plain
    server = Server(transport, handler, limits=Limits(rate=2, burst=3), clock=clock, lifecycle=Graceful(drain=5))
    with server.start(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM if handler is Whole else socket.SOCK_STREAM)) for _ in range(6)]
        for client in clients:
            client.settimeout(10)
            client.connect(server.addresses[0])
            client.sendall(b"hello\n")
        for client in clients[:3]:
            assert client.recv(10)
        wait_until(lambda: is_suspended(server))
        for count in (4, 5, 6):
            assert server.stats().accepted == count - 1
            clock.advance(0.45)
            assert server.stats().accepted == count - 1
            clock.advance(0.0501)
            assert clients[count - 1].recv(10)


# --- datagrams ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(), Limits(rate=1e6)], ids=["plain", "guarded"])
def test_a_datagram_that_was_cut_is_refused_and_one_that_was_not_is_served(limits):
    transport = UDP("127.0.0.1", 0, max_packet_size=1000)
    with Server(transport, Whole, limits=limits, observers=[watcher := Watcher()]).start() as server:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.addresses[0])
            for size in (0, 1, 999, 1000):
                client.send(bytes(size))
                assert client.recv(10) == b"%d" % size
            for size in (1001, 65507):
                client.send(bytes(size))
            client.send(b"mark")
            assert client.recv(10) == b"4", "there was no answer to those that were cut"
    assert server.stats().outcomes == {"finished": 5, "refused": 2}
    assert watcher.reasons == ["truncated"] * 2


def test_the_largest_datagram_there_is_comes_whole():
    with Server(UDP("127.0.0.1", 0), Whole).start() as server:
        assert ask(server.addresses[0], bytes(65507)) == b"65507"


# --- workers -----------------------------------------------------------------------------------------------------------------------


def test_each_worker_has_its_share_of_the_cap():
    assert Limits(max_connections=10, rate=8.0, burst=5).shared_by(4) == Limits(max_connections=3, rate=2.0, burst=2)
    assert Limits(max_connections=None).shared_by(4) == Limits(max_connections=None)
    python("""
import os, socket, time
from socketkit import *
class Echo(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(b"%d %s" % (os.getpid(), self.rfile.readline()))
server = Server(TCP("127.0.0.1", 0), Echo, dispatcher=Prefork(2, Adaptive()), limits=Limits(max_connections=3), lifecycle=Graceful(drain=5))
import threading
def ask(client):
    client.sendall(b"x\\n")
    return client.recv(100).split()[0]
def clients():
    while server.state.value != "running" or not server.addresses: time.sleep(0.01)
    held = [socket.create_connection(server.addresses[0], timeout=20) for _ in range(6)]
    for each in held: each.sendall(b"x\\n")
    import select
    answered = set()
    while len(answered) < 4:
        answered.update(select.select([each for each in held if each not in answered], [], [], 20)[0])
    pids = [each.recv(100).split()[0] for each in answered]
    assert sorted(map(pids.count, set(pids))) == [2, 2], pids
    waiting = [each for each in held if each not in answered]
    assert not select.select(waiting, [], [], 0.2)[0]
    for each in answered: each.shutdown(socket.SHUT_RDWR)  # a worker may have been forked with a copy
    for each in waiting:
        assert each.recv(100)
        each.shutdown(socket.SHUT_RDWR)
    print("all right", flush=True)
    server.stop(wait=False)
threading.Thread(target=clients).start()
server.serve_forever()
assert server.stats().accepted == 6, server.stats()
""")


# --- descriptors -------------------------------------------------------------------------------------------------------------------


def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_connections_need():
    python("""
import logging, resource, sys
from helpers import innards
from socketkit import *
logging.basicConfig(stream=sys.stdout)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, min(hard, 5000)))
server = Server(TCP("127.0.0.1", 0), print, dispatcher=Pool(4), limits=Limits(max_connections=1000))
with server.start():
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + 4 + 1 + 64
    assert innards.limits(server).max_connections == 1000
before = resource.getrlimit(resource.RLIMIT_NOFILE)
with Server(TCP("127.0.0.1", 0), print, dispatcher=Pool(4), limits=Limits(max_connections=10)).start(): pass
with Server(TCP("127.0.0.1", 0), print, limits=Limits(max_connections=None)).start(): pass
assert resource.getrlimit(resource.RLIMIT_NOFILE) == before, "it is enough"
""")


@pytest.mark.parametrize(
    ("dispatcher", "most"),
    [("Pool(4)", 64 + 100 - 4 - 1 - 64), ("Pool(4, connections=50)", 50), ("Prefork(2, Pool(4))", 64 + 100 - 4 - 1 - 64)],
)
def test_connections_are_fewer_where_the_hard_limit_is_too_low_and_it_is_told_once(dispatcher, most):
    program = f"""
import resource, threading
from helpers import innards
from socketkit import *
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 164))
server = Server(TCP("127.0.0.1", 0), print, dispatcher={dispatcher}, limits=Limits(max_connections=1000))
class Stop:
    def server_started(self, server):
        assert innards.limits(server).max_connections == {most}, innards.limits(server)
        server.stop(wait=False)
server._observe([Stop()])
server.serve_forever()
"""
    told = python(program).stderr
    assert told.count("\n") == (0 if most == 50 else 1)
    if most != 50:
        assert f"may have 164 files open, and max_connections={1000 if 'Prefork' not in dispatcher else 500} needs" in told
        assert f"no more than {most} connections" in told
