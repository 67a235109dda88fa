"""Deadlines: who is over its time is cut then, whatever it sends; who is not is left alone; and nobody pays for it."""

import contextlib
import logging
import re
import socket
import sys
import threading

import pytest

from helpers import innards
from helpers.interleaving import Lock, schedules
from helpers.support import python, wait_until
from socketkit import (
    TCP,
    Adaptive,
    Asyncio,
    AsyncStreamRequestHandler,
    ConversationHandler,
    Executor,
    Graceful,
    Limits,
    MessageHandler,
    Pool,
    Server,
    StreamRequestHandler,
    Sync,
    Threads,
    UnixStream,
    logs,
)
from socketkit._engine import deadlines
from socketkit._engine.deadlines import Deadlines, Unheard
from socketkit._engine.ledger import Entry, Ledger
from socketkit.testing import FakeClock
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program

ANYWHERE = TCP("127.0.0.1", 0)
ALL = [Sync(), Threads(), Pool(1), Adaptive(), Executor(), Asyncio()]
NOT_HELD = [Threads(), Pool(2), Adaptive(), Executor(), Asyncio()]


class Plain(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Echo(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())


class Greets(Plain):
    speaks_first = True

    def handle(self):
        self.wfile.write(b"hello\n")
        super().handle()


class Coroutine(AsyncStreamRequestHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(line)


class Watcher:
    def __init__(self):
        self.errors = []

    def request_failed(self, server, client_address, error):
        self.errors.append(error)


@pytest.fixture(params=["tcp", "unix"])
def served(request, tmp_path):
    """A function that serves by a clock of its own, and one that makes clients."""
    with contextlib.ExitStack() as stack:

        def serve(handler, dispatcher=None, clock=None, **limits):
            transport = ANYWHERE if request.param == "tcp" else UnixStream(str(tmp_path / "socket"))
            server = Server(
                transport,
                handler,
                dispatcher=dispatcher,
                lifecycle=Graceful(drain=5),
                limits=Limits(**limits),
                observers=[watcher := Watcher()],
                clock=clock or FakeClock(),
            )
            server.clock, server.watcher = innards.ledger(server).clock, watcher
            stack.enter_context(server)
            return server.start()

        def client(server):
            where = address(server.urls[0])
            made = stack.enter_context(socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET))
            made.settimeout(10)
            made.connect(where)
            return made

        yield serve, client


def is_running(server):
    """Return whether a handler has begun."""
    return any(entry.thread is not None for entry in innards.active(server))


def ended(client):
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def begin(server, client):
    """Have the handler of a client that says nothing begin."""
    wait_until(lambda: is_running(server) or innards.parked(server))
    if not is_running(server):  # it is parked until it is sure to say nothing
        server.clock.advance(0.02)
    wait_until(lambda: is_running(server))


def all_run(server):
    return all(entry.thread is not None for entry in innards.active(server))


# --- the first byte ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", ALL, ids=lambda each: type(each).__name__)
def test_a_client_that_says_nothing_is_cut_in_time(served, dispatcher):
    serve, client = served
    server = serve(Plain, dispatcher, first_byte=30)
    silent = client(server)
    begin(server, silent)
    server.clock.advance(29.9)
    assert not server.stats().outcomes
    server.clock.advance(0.1)
    assert ended(silent)
    wait_until(lambda: server.stats().outcomes)
    assert server.stats().outcomes == {"timed out": 1}
    assert list(map(str, server.watcher.errors)) == ["no byte arrived within 30 s"]
    assert talk(address(server.urls[0]), b"next\n") == b"next\n", "its place is another's"


@pytest.mark.parametrize("dispatcher", NOT_HELD, ids=lambda each: type(each).__name__)
def test_a_silent_client_is_cut_in_time_although_another_has_long_been_served(served, dispatcher):
    serve, client = served
    server = serve(Plain, dispatcher, first_byte=30, request=3600)
    lasting = client(server)
    lasting.sendall(b"x\n")
    assert lasting.recv(10) == b"x\n"
    server.clock.advance(31)  # its own end is now far away
    wait_until(lambda: all(entry.heard for entry in innards.active(server)))
    silent = client(server)
    wait_until(lambda: server.stats().active == 2 and (all_run(server) or innards.parked(server)))
    server.clock.advance(0.02)  # it is parked until it is sure to say nothing
    wait_until(lambda: all_run(server))
    server.clock.advance(31)
    assert ended(silent)
    lasting.sendall(b"y\n")
    assert lasting.recv(10) == b"y\n"


@pytest.mark.parametrize("dispatcher", NOT_HELD, ids=lambda each: type(each).__name__)
def test_a_client_that_has_said_something_has_all_the_time_of_a_request(served, dispatcher):
    serve, client = served
    server = serve(Plain, dispatcher, first_byte=30, request=100)
    late, early = client(server), client(server)
    begin(server, late)
    for each in (early, late):
        each.sendall(b"x\n")
        assert each.recv(10) == b"x\n"
    server.clock.advance(60)
    for each in (early, late):
        each.sendall(b"y\n")
        assert each.recv(10) == b"y\n"
    server.clock.advance(45)
    assert ended(early)
    assert ended(late)
    wait_until(lambda: not server.stats().active)
    assert server.stats().outcomes == {"timed out": 2}


@pytest.mark.parametrize("dispatcher", ALL, ids=lambda each: type(each).__name__)
def test_a_client_that_is_spoken_to_first_may_take_its_time(served, dispatcher):
    serve, client = served
    server = serve(Greets, dispatcher, first_byte=30)
    listening = client(server)
    assert listening.recv(10) == b"hello\n"
    server.clock.advance(1000)
    listening.sendall(b"thanks\n")
    assert listening.recv(10) == b"thanks\n"


@pytest.mark.parametrize("idle", [75.0, 5.0, None])
def test_a_conversation_that_never_begins_is_closed_when_its_first_request_is_due(served, idle):
    serve, client = served
    server = serve(Echo, Adaptive(idle=idle), first_byte=30)
    silent = client(server)
    wait_until(lambda: innards.parked(server))
    server.clock.advance(0.02)
    wait_until(lambda: any(unit.begun for unit in list(innards.parked(server))))
    server.clock.advance(4.9)
    assert server.stats().active == 1
    server.clock.advance(0.3 if idle == 5.0 else 25.2)
    assert ended(silent)
    server.stop()
    assert server.stats().outcomes == ({"finished": 1} if idle == 5.0 else {"timed out": 1})


def test_the_idle_time_of_a_conversation_is_its_dispatchers_unless_limits_say_another(served):
    serve, client = served
    server = serve(Echo, Adaptive(idle=75.0), first_byte=30, idle=10)
    talking = client(server)
    for _ in range(3):
        talking.sendall(b"x\n")
        assert talking.recv(10) == b"x\n"
        wait_until(lambda: innards.parked(server))
        server.clock.advance(9.8)
    server.clock.advance(0.4)
    assert ended(talking)
    server.stop()
    assert server.stats().outcomes == {"finished": 1}


def cuts(caplog):
    """Return what the log says of cuts, without the addresses."""
    assert logs.flush()
    said = [record.getMessage() for record in caplog.records if record.name == "socketkit.limits" and record.levelno == logging.INFO]
    return [re.sub(r"^.*: cut .* by ", "", line) for line in said]


@pytest.mark.parametrize(
    ("handler", "limits", "line"),
    [
        (Plain, {"first_byte": 30}, "limits.first_byte: no byte arrived within 30 s"),
        (Echo, {"first_byte": 30}, "limits.first_byte: no request arrived in time"),
        (Greets, {"request": 30}, "limits.request: not finished within 30 s"),
    ],
    ids=["silent", "conversation", "request"],
)
def test_a_cut_of_a_silent_client_is_one_line_that_names_the_key(served, caplog, handler, limits, line):
    caplog.set_level(logging.INFO)
    serve, client = served
    server = serve(handler, Adaptive(), **limits)
    silent = client(server)
    if handler is Echo:
        wait_until(lambda: innards.parked(server))
        server.clock.advance(0.02)
        wait_until(lambda: any(unit.begun for unit in list(innards.parked(server))))
    else:
        begin(server, silent)
    server.clock.advance(30.5)
    wait_until(lambda: server.stats().outcomes)
    assert cuts(caplog) == [line]


@pytest.mark.parametrize(("limits", "key"), [({"idle": 30}, "limits.idle"), ({}, "dispatcher.idle")], ids=["limit", "dispatcher"])
def test_a_cut_of_an_idle_conversation_is_one_line_that_names_the_key(served, caplog, limits, key):
    caplog.set_level(logging.INFO)
    serve, client = served
    server = serve(Echo, Adaptive(idle=30), **limits)
    talking = client(server)
    talking.sendall(b"x\n")
    assert talking.recv(10) == b"x\n"
    wait_until(lambda: innards.parked(server))
    server.clock.advance(30.5)
    assert ended(talking)
    wait_until(lambda: server.stats().outcomes)
    assert cuts(caplog) == [f"{key}: no request came within 30 s"]


def test_a_cut_names_its_server_as_the_configuration_does(tmp_path):
    (tmp_path / "given.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.INFO)\ndef chat(request, client_address, server): request.recv(1)"
    )
    (tmp_path / "chat.toml").write_text("servers.chat = {listen='tcp://127.0.0.1:0', handler='given:chat', limits={first_byte='100ms'}}")
    with Program(sys.executable, "-u", "-m", "socketkit", "serve", "chat.toml", cwd=tmp_path) as program:
        with socket.create_connection(address(program.serving()[0])):
            program.line(r"servers.chat: cut \('127.0.0.1', \d+\) by limits.first_byte: no byte arrived within 0.1 s")


def test_asynchronous_handlers_are_cut_too():
    clock = FakeClock()
    server = Server(ANYWHERE, Coroutine, dispatcher=Asyncio(), limits=Limits(first_byte=30, request=100), clock=clock)
    with server.start():
        with contextlib.ExitStack() as stack:
            silent, busy = (stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(2))
            busy.sendall(b"x\n")
            assert busy.recv(10) == b"x\n"
            wait_until(lambda: server.stats().active == 2)
            clock.advance(31)
            assert ended(silent)
            busy.sendall(b"y\n")
            assert busy.recv(10) == b"y\n"
            clock.advance(70)
            assert ended(busy)
    assert server.stats().outcomes == {"timed out": 2}


# --- the request -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", ALL, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("handler", [Plain, Echo])
def test_no_drip_puts_the_end_of_a_request_off(served, dispatcher, handler):
    serve, client = served
    server = serve(handler, dispatcher, request=60, first_byte=None)
    slow = client(server)
    slow.sendall(b"x")
    wait_until(lambda: is_running(server))
    for _ in range(5):
        server.clock.advance(10)
        slow.sendall(b"x")
    assert not server.stats().outcomes
    server.clock.advance(10.1)
    assert slow.recv(100) in {b"", b"xxxxxx"}  # a handler may answer what there is
    wait_until(lambda: server.stats().outcomes)
    assert server.stats().outcomes == {"timed out": 1}
    assert list(map(str, server.watcher.errors)) == ["not finished within 60 s"]


@pytest.mark.parametrize("dispatcher", [Pool(1), Adaptive(), Executor()], ids=lambda each: type(each).__name__)
def test_each_request_of_a_conversation_has_a_time_of_its_own(served, dispatcher):
    serve, client = served
    server = serve(Echo, dispatcher, request=60, idle=1e6)
    talking = client(server)
    for _ in range(5):
        talking.sendall(b"hel")
        wait_until(lambda: is_running(server))
        server.clock.advance(50)
        talking.sendall(b"lo\n")
        assert talking.recv(10) == b"hello\n"
        wait_until(lambda: not is_running(server) and innards.parked(server))
        server.clock.advance(5000)
    talking.sendall(b"hel")
    wait_until(lambda: is_running(server))
    server.clock.advance(60.1)
    talking.recv(100)
    wait_until(lambda: server.stats().outcomes)
    assert server.stats().outcomes == {"timed out": 1}


def test_a_handler_that_raises_when_it_is_cut_leaves_no_traceback(served, caplog):
    serve, client = served

    class Strict(StreamRequestHandler):
        def handle(self):
            if len(self.rfile.read(10)) < 10:
                raise ValueError("too short")

    server = serve(Strict, request=60)
    slow = client(server)
    slow.sendall(b"x")
    wait_until(lambda: is_running(server))
    server.clock.advance(61)
    assert ended(slow)
    server.stop()
    assert server.stats().outcomes == {"timed out": 1}
    assert [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}] == []
    assert list(map(str, server.watcher.errors)) == ["not finished within 60 s"]


def test_every_thread_of_a_pool_may_be_held_and_is_freed_in_time(served):
    serve, client = served
    server = serve(Plain, Pool(2), first_byte=None, request=60)
    holding = [client(server) for _ in range(2)]
    for each in holding:
        each.sendall(b"x\n")
        assert each.recv(10) == b"x\n"
    waiting = client(server)
    waiting.sendall(b"me too\n")
    server.clock.advance(60.1)
    assert all(map(ended, holding))
    assert waiting.recv(10) == b"me too\n"


def test_no_time_is_kept_where_there_is_no_deadline(served):
    serve, client = served
    server = serve(Plain, first_byte=None, request=None, write_stall=None)
    one = client(server)
    one.sendall(b"x\n")
    assert one.recv(10) == b"x\n"
    assert "socketkit-timekeeper" not in [thread.name for thread in threading.enumerate()]


def test_the_thread_that_keeps_the_time_ends_with_its_run(served):
    serve, client = served
    server = serve(Plain)
    one = client(server)
    one.sendall(b"x\n")
    assert one.recv(10) == b"x\n"
    wait_until(lambda: "socketkit-timekeeper" in [thread.name for thread in threading.enumerate()])
    one.close()
    server.stop()
    assert "socketkit-timekeeper" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("transport", ['TCP("127.0.0.1", 0)', 'UnixStream("@" + str(os.getpid()))'])
def test_a_child_is_ended_in_time_and_says_when_its_client_says_nothing(transport):
    python(f"""
import os, socket, time
from socketkit import *
from socketkit.testing.clients import address
class Plain(StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line)
class Stubborn(Plain):
    def handle(self):
        while True: pass
def connect(server):
    where = address(server.urls[0])
    client = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    client.settimeout(20)
    client.connect(where)
    return client
for handler, first_byte, request, word in ((Plain, 0.3, None, b""), (Plain, None, 0.3, b"x"), (Stubborn, None, 0.3, b"x"), (Plain, 0.3, 0.6, b"x\\n")):
    limits = Limits(first_byte=first_byte, request=request)
    server = Server({transport}, handler, dispatcher=Forks(4), limits=limits, lifecycle=Graceful(drain=5))
    with server.start():
        began, client = time.monotonic(), connect(server)  # in this order: the server's clock starts in between
        client.sendall(word)
        try:
            while client.recv(10): pass
        except ConnectionResetError: pass  # what it had sent was not read
        took = time.monotonic() - began
        server.stop()
    assert server.stats().outcomes == {{"timed out": 1}}, (handler, word, server.stats())
    due = request if word else first_byte
    assert due - 0.01 <= took < due + 2, took
""")


# --- real clients ------------------------------------------------------------------------------------------------------------------


def test_slow_clients_are_gone_in_time_and_nobody_else_notices():
    """A small slowloris, through a proxy that drips; see F7 of the contract."""
    python(
        """
import socket, threading, time
from socketkit import *
from socketkit.testing import *
class Plain(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())
for dispatcher in (Pool(60), Adaptive(), Threads()):
    limits = Limits(first_byte=0.5, request=1.5)
    server = Server(TCP("127.0.0.1", 0), Plain, dispatcher=dispatcher, limits=limits, lifecycle=Graceful(drain=5))
    with server.start(), ChaosProxy(server.addresses[0], Drip(size=1, interval=0.05, to="server")) as proxy:
        began, slow = time.monotonic(), []
        for number in range(50):
            client = socket.create_connection(proxy.address, timeout=20)
            if number % 2: client.sendall(b"x" * 1000)
            slow.append(client)
        while time.monotonic() < began + 1.2:
            with socket.create_connection(server.addresses[0], timeout=20) as good:
                good.sendall(b"hello\\n")
                assert good.recv(10) == b"hello\\n"
        def end(client):
            try:
                while client.recv(10): pass
            except ConnectionError: pass
            return time.monotonic() - began
        ends = [end(client) for client in slow]
        for client in slow: client.close()
        assert max(ends[::2]) < 2.5 and max(ends[1::2]) < 3.5, ends
        while server.stats().active: time.sleep(0.01)
    assert server.stats().outcomes["timed out"] == 50, server.stats()
""",
        guard=50,
    )


STALLS = """
import socket, time
from socketkit import *
from socketkit.testing.clients import address
MUCH = 50_000_000
class Plain(StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(bytes(MUCH))
class Buffered(Plain):
    wbufsize = 100_000
class Talks(ConversationHandler):
    def handle_one_request(self):
        self.rfile.readline()
        self.wfile.write(bytes(MUCH))
class Coroutine(AsyncStreamRequestHandler):
    async def handle(self):
        await self.reader.readline()
        for _ in range(5000):
            self.writer.write(bytes(10_000))
            await self.writer.drain()
class Watcher:
    def __init__(self): self.errors = []
    def request_failed(self, server, client_address, error): self.errors.append(error)
"""


@pytest.mark.parametrize("transport", ['TCP("127.0.0.1", 0)', 'UnixStream("@stalls" + str(os.getpid()))'], ids=["tcp", "unix"])
def test_a_client_that_takes_nothing_of_what_it_is_sent_is_given_up(transport):
    python(
        STALLS
        + f"""
import os, logging
from socketkit import logs
class Keep(logging.Handler):
    def emit(self, record): cuts.append(record.getMessage())
logging.basicConfig(level=logging.INFO, handlers=[Keep()])
cuts = []
for dispatcher, handler in ((Sync(), Plain), (Threads(), Buffered), (Pool(2), Plain), (Adaptive(), Talks), (Executor(), Talks),
                            (Asyncio(), Plain), (Asyncio(), Coroutine), (Forks(4), Plain)):
    watcher = Watcher()
    limits = Limits(write_stall=0.2)
    server = Server({transport}, handler, dispatcher=dispatcher, limits=limits, observers=[watcher], lifecycle=Graceful(drain=5))
    with server.start():
        where = address(server.urls[0])
        client = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(where)
        client.sendall(b"go\\n")
        began = time.monotonic()
        while not server.stats().outcomes and time.monotonic() < began + 8: time.sleep(0.01)
        assert server.stats().outcomes == {{"timed out": 1}}, (dispatcher, handler, server.stats())
        client.close()
        assert logs.flush()
        if dispatcher == Sync(): assert [each.split(" by ")[1] for each in cuts] == ["limits.write_stall: the client took nothing of what it was sent"]
"""
    )


def test_a_slow_client_that_takes_something_now_and_then_is_not_given_up():
    python(
        STALLS
        + """
MUCH = 3_000_000
for dispatcher, handler in ((Threads(), Plain), (Asyncio(), Coroutine)):
    limits = Limits(write_stall=0.5)
    server = Server(TCP("127.0.0.1", 0), handler, dispatcher=dispatcher, limits=limits, lifecycle=Graceful(drain=5))
    with server.start():
        with socket.create_connection(server.addresses[0], timeout=20) as client:
            client.sendall(b"go\\n")
            got, began = 0, time.monotonic()
            while time.monotonic() < began + 2:
                got += len(client.recv(200_000))
                time.sleep(0.1)
            while data := client.recv(1_000_000): got += len(data)
        assert got == (MUCH if handler is Plain else 50_000_000), got
    assert server.stats().outcomes == {"finished": 1}, server.stats()
"""
    )


def test_another_blocking_error_of_a_handler_is_no_stall(served, caplog):
    serve, client = served

    class Wrong(StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            raise BlockingIOError(11, "something else would block")

    server = serve(Wrong)
    one = client(server)
    one.sendall(b"x\n")
    assert ended(one)
    server.stop()
    assert server.stats().outcomes == {"failed": 1}
    assert "something else would block" in caplog.text


# --- without a server --------------------------------------------------------------------------------------------------------------


class Later:
    def __init__(self):
        self.calls = []

    def __call__(self, seconds, callback):
        self.calls.append((seconds, callback))


def watching(clock, later, ledger=None, handshake=None, **limits):
    ledger = ledger or Ledger(clock=clock)
    cut = []
    made = Deadlines(Limits(handshake=handshake, **limits), ledger, later, speaks_first=lambda: False, cut=cut.append)
    made._setting = Lock()
    return made, ledger, cut


def test_there_is_one_timer_for_all_and_none_for_nobody():
    clock, later = FakeClock(), Later()
    watch, ledger, cut = watching(clock, later, first_byte=None, request=60)
    requests = [object() for _ in range(100)]
    for request in requests:
        ledger.admit(request, "peer")
        if watch.asleep:
            watch.begin()
        clock.advance(0.1)
    assert [seconds for seconds, _ in later.calls] == [60]
    for request in requests[:-1]:
        ledger.settle(request)
    clock.advance(50.1)
    later.calls.pop()[1]()
    assert [seconds for seconds, _ in later.calls] == [pytest.approx(9.8)], "set for the one that is left"
    clock.advance(9.9)
    later.calls.pop()[1]()
    assert cut == [requests[-1]]
    assert later.calls == []
    assert watch.asleep


def test_a_connection_in_its_layers_is_bound_by_the_handshake_and_by_the_request():
    for limits, moment in (
        ({"handshake": 5, "request": 60}, 5),
        ({"handshake": None, "request": 60}, 60),
        ({"handshake": 90, "request": 60}, 60),
    ):
        clock, later = FakeClock(), Later()
        watch, ledger, cut = watching(clock, later, first_byte=1, **limits)
        ledger.admit(object(), "peer").layers = (object(),)
        watch.begin()
        clock.advance(moment - 0.5)
        later.calls.pop()[1]()
        assert cut == [], "the limit for first bytes begins after the layers"
        clock.advance(1)
        later.calls.pop()[1]()
        assert len(cut) == 1


def test_who_is_cut_is_cut_once_and_does_not_keep_anybody_awake():
    clock, later = FakeClock(), Later()
    watch, ledger, cut = watching(clock, later, request=60, first_byte=None)
    ledger.admit(object(), "stubborn")
    watch.begin()
    clock.advance(61)
    later.calls.pop()[1]()
    assert len(cut) == 1
    assert later.calls == []


def test_datagrams_have_no_deadline():
    clock, later = FakeClock(), Later()
    watch, ledger, cut = watching(clock, later, request=60)
    ledger.admit((b"data", None), "peer")
    watch.begin()
    clock.advance(61)
    later.calls.pop()[1]()
    assert cut == later.calls == []


@pytest.mark.parametrize("first", ["begin", "look"])
def test_nobody_goes_unwatched_however_beginning_and_looking_interleave(first):
    clock = FakeClock()

    def make():
        later = Later()
        watch, ledger, _cut = watching(clock, later, first_byte=None, request=60)
        watch.begin()
        return watch, ledger, later, later.calls.pop()[1]

    def begin(watch, ledger, _later, _look):
        def run():
            ledger.admit(object(), "peer")
            if watch.asleep:
                watch.begin()

        return (run,)

    def look(_watch, _ledger, _later, callback):
        return (callback,)

    count = 0
    for watch, _ledger, later, *_ in schedules(
        (deadlines, sys.modules[__name__]), make, *((begin, look) if first == "begin" else (look, begin))
    ):
        assert len(later.calls) == 1, "one timer, no more"
        assert not watch.asleep
        count += 1
    assert count > 20


def test_when_there_is_no_thread_to_keep_the_time_the_next_request_tries_again(caplog):
    def later(seconds, callback):
        calls.append(seconds)
        if len(calls) == 1:
            raise RuntimeError("can't start new thread")

    calls, clock = [], FakeClock()
    watch, *_ = watching(clock, later)
    watch.begin()
    assert watch.asleep
    watch.begin()
    assert not watch.asleep
    assert len(calls) == 2


def test_an_unheard_connection_is_a_plain_one_as_soon_as_something_comes_or_might():
    def pair():
        ours, theirs = socket.socketpair()
        ours.__class__ = Unheard
        return ours, theirs

    for read in (
        lambda one: one.recv(1),
        lambda one: one.recv_into(bytearray(1)),
        lambda one: one.recvmsg(1),
        lambda one: one.makefile("rb").readline(),
        lambda one: one.fileno(),
        lambda one: one.dup().close(),
    ):
        ours, theirs = pair()
        with ours, theirs:
            ours.setblocking(False)
            with pytest.raises(BlockingIOError):
                ours.recv(1)
            assert type(ours) is Unheard, "nothing has come"
            ours.setblocking(True)
            theirs.sendall(b"x\n")
            read(ours)
            assert type(ours) is socket.socket


def test_a_first_byte_that_nobody_has_read_yet_has_come_all_the_same():
    clock, later = FakeClock(), Later()
    watch, ledger, cut = watching(clock, later, first_byte=30, request=None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch.listen_to(ours)
        assert type(ours) is Unheard
        ledger.admit(ours, "peer")
        watch.begin()
        theirs.sendall(b"x")
        clock.advance(31)
        later.calls.pop()[1]()
        assert cut == later.calls == []
        assert type(ours) is Unheard, "nobody has read it"


def test_an_idle_server_makes_no_wake_up_for_its_deadlines():
    python("""
from helpers import innards
import os, pathlib, time
from socketkit import *
from socketkit.testing.clients import talk
class Answer(StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline())
def switches():
    return {path: [line for line in path.read_text().splitlines() if "ctxt_switches" in line or line.startswith("Name")]
            for path in pathlib.Path("/proc/self/task").glob("*/status") if path.parent.name != str(os.getpid())}
with Server(TCP("127.0.0.1", 0), Answer, limits=Limits(first_byte=0.3)).start() as server:
    assert talk(server.addresses[0], b"hello\\n") == b"hello\\n"
    deadlines = innards.sources(server)[0].deadlines
    assert not deadlines.asleep
    while not deadlines.asleep: time.sleep(0.01)
    time.sleep(0.2)  # nothing is ordered by this: they go back to sleep
    before = switches()
    assert len(before) >= 3, before  # who serves, who leads, and who keeps the time
    time.sleep(1.0)
    assert switches() == before, (before, switches())
""")


def test_an_entry_knows_when_it_began():
    assert Entry(object(), "peer", 5.0).began == 5.0


class Shout(MessageHandler):
    def reply(self, message, client_address):
        return message.upper()


@pytest.mark.parametrize("dispatcher", [Pool(1), Adaptive(), Executor(), Sync(), Threads()], ids=lambda each: type(each).__name__)
def test_a_message_that_comes_bit_by_bit_has_no_more_time_than_another(served, dispatcher):
    serve, client = served
    server = serve(Shout, dispatcher, request=10.0, idle=100.0, write_stall=None)
    one = client(server)
    for _ in range(3):  # each message has its own time
        one.sendall(b"a")
        if server.dispatcher in {Pool(1), Adaptive(), Executor()}:
            wait_until(lambda: any(entry._handler and entry._handler.is_within_request for entry in innards.active(server)))
            wait_until(lambda: innards.parked(server))
        server.clock.advance(6.0)
        one.sendall(b"b\n")
        assert one.recv(10) == b"AB\n"
        if server.dispatcher in {Sync(), Threads()}:
            break  # there a connection is one request
    one.sendall(b"a")
    if server.dispatcher in {Pool(1), Adaptive(), Executor()}:
        wait_until(lambda: any(entry._handler and entry._handler.is_within_request for entry in innards.active(server)))
    server.clock.advance(6.0)
    with contextlib.suppress(OSError):  # it is cut by now where the whole connection counts
        one.sendall(b"b")
    server.clock.advance(6.0)
    assert one.recv(10) == b""
    wait_until(lambda: server.stats().outcomes)
    assert server.stats().outcomes == {"timed out": 1}
