"""Observers hear when a handler is entered and left, where and in the context in which it runs, and how each request ended."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextvars import ContextVar

import pytest

from helpers.support import python
from socketkit import AsyncStreamRequestHandler, ConversationHandler, Server, StreamRequestHandler
from socketkit.testing import FakeClock

LATE = 20

span: ContextVar[str] = ContextVar("span", default="nothing")


class Recorder:
    """Records the events of requests, with the thread of each; marks the context of each handler."""

    def __init__(self):
        self.events = []
        self.said = threading.Condition()

    def _say(self, *facts):
        with self.said:
            self.events.append((*facts, threading.get_ident()))
            self.said.notify_all()

    def handler_entered(self, server, request, client_address, seconds):
        before = span.get()
        if seconds is not None:
            span.set(f"span of {client_address[1]}")
        self._say("entered", before, seconds is None)

    def handler_left(self, server, client_address, outcome, seconds):
        self._say("left", span.get(), outcome)

    def request_ended(self, server, client_address, outcome, seconds):
        self._say("ended", outcome, seconds >= 0)

    def names(self):
        return [event[0] for event in self.events]

    def wait_for(self, name, count=1):
        with self.said:
            assert self.said.wait_for(lambda: self.names().count(name) >= count, LATE), self.events


class Tells(StreamRequestHandler):
    """Tells the client its context and its thread."""

    def handle(self):
        self.rfile.readline()
        self.wfile.write(f"{span.get()},{threading.get_ident()}\n".encode())


class AsyncTells(AsyncStreamRequestHandler):
    async def handle(self):
        await self.reader.readline()
        self.writer.write(f"{span.get()},{threading.get_ident()}\n".encode())


class Asks(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline()
        if line == b"raise\n":
            raise ValueError("asked to")
        self.wfile.write(f"{span.get()},{threading.get_ident()}\n".encode())
        self.close_connection = line == b"last\n"


def ask(client, line=b"more\n"):
    client.sendall(line)
    return client.makefile("rb").readline().decode().strip().split(",")


def serve(handler, recorder, dispatcher):
    return Server("tcp://127.0.0.1:0", handler, dispatcher=dispatcher, observers=[recorder]).start()


@pytest.mark.parametrize(
    ("handler", "dispatcher"),
    [*((Tells, each) for each in ("sync", "thread", "pool:2", "adaptive", "executor", "asyncio")), (AsyncTells, "asyncio")],
)
def test_a_handler_runs_in_the_thread_and_the_context_in_which_it_was_entered(handler, dispatcher):
    recorder = Recorder()
    server = serve(handler, recorder, dispatcher)
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        context, thread = ask(client)
        port = client.getsockname()[1]
    recorder.wait_for("ended")
    server.stop()

    entered, left, ended = recorder.events
    assert context == f"span of {port}"
    assert entered == ("entered", "nothing", False, int(thread))
    assert left == ("left", context, "finished", int(thread))
    assert ended[:3] == ("ended", "finished", True)


def test_each_request_has_a_context_of_its_own():
    recorder = Recorder()
    server = serve(Tells, recorder, "sync")
    for _ in range(3):
        with socket.create_connection(server.addresses[0], timeout=LATE) as client:
            ask(client)
    recorder.wait_for("ended", 3)
    server.stop()
    assert [event[1] for event in recorder.events if event[0] == "entered"] == ["nothing"] * 3


def test_a_parked_conversation_is_left_and_entered_again_in_the_same_context():
    recorder = Recorder()
    server = serve(Asks, recorder, "adaptive")
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        contexts = {ask(client)[0]}
        recorder.wait_for("left")
        contexts.add(ask(client, b"last\n")[0])
        recorder.wait_for("ended")
    server.stop()

    [context] = contexts
    assert [event[:3] for event in recorder.events] == [
        ("entered", "nothing", False),
        ("left", context, None),
        ("entered", context, True),
        ("left", context, "finished"),
        ("ended", "finished", True),
    ]


def test_the_handler_of_a_connection_that_a_stop_closes_is_left_for_good():
    recorder = Recorder()
    server = serve(Asks, recorder, "adaptive")
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        context, _ = ask(client)
        recorder.wait_for("left")
        server.stop()
    assert [event[:3] for event in recorder.events[2:]] == [
        ("entered", context, True),
        ("left", context, "finished"),
        ("ended", "finished", True),
    ]


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "adaptive"])
def test_a_handler_that_raises_is_left_with_its_outcome(dispatcher):
    recorder = Recorder()
    server = serve(Asks, recorder, dispatcher)
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(b"raise\n")
        assert client.recv(10) == b""
    recorder.wait_for("ended")
    server.stop()
    assert [event[0::2][:2] for event in recorder.events if event[0] == "left"] == [("left", "failed")]
    assert recorder.events[-1][:2] == ("ended", "failed")


class Exits(StreamRequestHandler):
    def handle(self):
        raise SystemExit(3)


class IsCancelled(AsyncStreamRequestHandler):
    async def handle(self):
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("handler", "dispatcher"), [(Exits, "sync"), (Exits, "thread"), (Exits, "pool:2"), (Exits, "adaptive"), (IsCancelled, "asyncio")]
)
def test_a_handler_that_exits_is_left_with_its_outcome(handler, dispatcher):
    recorder = Recorder()
    server = serve(handler, recorder, dispatcher)
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        assert client.recv(10) == b""
    recorder.wait_for("ended")
    server.stop()
    assert [event[0::2][:2] for event in recorder.events if event[0] == "left"] == [("left", "failed")]
    assert recorder.events[-1][:2] == ("ended", "failed")


class Raises(ConversationHandler):
    """Raises the error that its client names; parks after any other line."""

    def handle_one_request(self):
        line = self.rfile.readline().strip()
        if line in ERRORS:
            raise ERRORS[line]("asked to")
        self.wfile.write(line + b"\n")


class AsyncRaises(AsyncStreamRequestHandler):
    async def handle(self):
        while line := (await self.reader.readline()).strip():
            if line in ERRORS:
                raise ERRORS[line]("asked to")
            self.writer.write(line + b"\n")


ERRORS = {each.__name__.encode(): each for each in (ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError)}


class Failures(Recorder):
    def request_failed(self, server, client_address, error):
        self._say("failed", type(error).__name__)


@pytest.mark.parametrize("error", [each.decode() for each in ERRORS])
@pytest.mark.parametrize(
    ("handler", "dispatcher"),
    [(Raises, "sync"), (Raises, "thread"), (Raises, "pool:2"), (Raises, "adaptive"), (Raises, "executor"), (AsyncRaises, "asyncio")],
)
def test_observers_hear_why_a_request_has_failed_before_its_handler_is_left(handler, dispatcher, error):
    recorder = Failures()
    server = serve(handler, recorder, dispatcher)
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        assert ask(client, b"hello\n") == ["hello"]
        if dispatcher == "adaptive":
            recorder.wait_for("left")  # it is parked
        client.sendall(error.encode() + b"\n")
        assert client.recv(10) == b""
    recorder.wait_for("ended")
    server.stop()
    assert recorder.names()[-3:] == ["failed", "left", "ended"]
    assert [event[1] for event in recorder.events if event[0] == "failed"] == [error]


class Complains(Server):
    """Raises in place of a report of what its handler has raised."""

    def handle_error(self, request, client_address):
        raise SystemExit(1)


def test_only_the_first_error_of_a_request_is_told():
    recorder = Failures()
    server = Complains("tcp://127.0.0.1:0", Raises, dispatcher="thread", observers=[recorder]).start()
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(b"ValueError\n")
        assert client.recv(10) == b""
    recorder.wait_for("ended")
    server.stop()
    assert [event[:2] for event in recorder.events if event[0] in {"failed", "ended"}] == [("failed", "ValueError"), ("ended", "failed")]


def test_a_deadline_that_passes_after_an_error_is_not_told():
    release = threading.Event()

    class Reports(Server):
        def handle_error(self, request, client_address):
            release.wait(LATE)

    clock, recorder = FakeClock(), Failures()
    server = Reports("tcp://127.0.0.1:0", Raises, dispatcher="thread", limits={"request": 5}, clock=clock, observers=[recorder]).start()
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(b"ValueError\n")
        recorder.wait_for("failed")
        clock.advance(6)
        assert client.recv(10) == b""  # the deadline has ended the connection
        release.set()
        recorder.wait_for("ended")
    server.stop()
    assert [event[:2] for event in recorder.events if event[0] in {"failed", "ended"}] == [("failed", "ValueError"), ("ended", "failed")]


def test_a_refused_request_ends_without_a_handler():
    recorder = Recorder()
    server = Server("tcp://127.0.0.1:0", Tells, limits={"deny": ["127.0.0.1"]}, observers=[recorder]).start()
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        assert client.recv(10) == b""
    recorder.wait_for("ended")
    server.stop()
    assert [event[:2] for event in recorder.events] == [("ended", "refused")]


PROCESSES = """
import os, socket, sys
from socketkit import Server, StreamRequestHandler

class Tells(StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"%d\\n" % os.getpid())
        if sys.argv[2:]:
            self.wfile.flush()
            raise {"ValueError": ValueError, "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[sys.argv[2]]

class Prints:
    def say(self, *words):
        os.write(1, " ".join([*map(str, words), str(os.getpid())]).encode() + b"\\n")
    def handler_entered(self, server, request, client_address, seconds):
        self.say("entered")
    def handler_left(self, server, client_address, outcome, seconds):
        self.say("left", outcome)
    def request_failed(self, server, client_address, error):
        self.say("failed", type(error).__name__)
    def request_ended(self, server, client_address, outcome, seconds):
        self.say("ended", outcome)

server = Server("tcp://127.0.0.1:0", Tells, dispatcher=sys.argv[1], observers=[Prints()]).start()
with socket.create_connection(server.addresses[0], timeout=20) as client:
    client.sendall(b"\\n")
    served = client.makefile().readline().strip()
server.stop()
print("served", served)
print("parent", os.getpid())
"""


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:1/sync", "prefork:1/fork"])
def test_handlers_are_entered_where_they_run_and_requests_end_where_they_were_accepted(dispatcher):
    lines = python(PROCESSES, dispatcher).stdout.splitlines()
    said = dict(line.rsplit(" ", 1) for line in lines)
    assert len(lines) == len(said) == 5, lines  # each once
    assert said["entered"] == said["left finished"] == said["served"] != said["parent"]
    if dispatcher == "fork":
        assert said["ended finished"] == said["parent"]
    elif dispatcher == "prefork:1/sync":
        assert said["ended finished"] == said["served"]
    else:
        assert said["ended finished"] not in {said["served"], said["parent"]}


@pytest.mark.parametrize("error", ["ValueError", "SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("dispatcher", ["fork", "prefork:1/sync", "prefork:1/fork"])
def test_a_forked_process_hears_why_a_request_has_failed_before_its_handler_is_left(dispatcher, error):
    lines = [line.rsplit(" ", 1) for line in python(PROCESSES, dispatcher, error).stdout.splitlines()]
    [served] = [pid for said, pid in lines if said == "served"]
    assert [said for said, pid in lines if pid == served][:3] == ["entered", f"failed {error}", "left failed"]


ENDING = """
import atexit, os, socket, sys
from socketkit import Server, StreamRequestHandler

class Answers(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"answer")
        if sys.argv[2] == "exit":
            sys.exit(3)

class Prints:
    def say(self, *words):
        os.write(1, " ".join([*map(str, words), str(os.getpid())]).encode() + b"\\n")
    def request_accepted(self, server, request, client_address):
        self.say("accepted")
    def handler_left(self, server, client_address, outcome, seconds):
        self.say("left")
    def process_ending(self, server):
        self.say("ending")

observer = Prints()
atexit.register(observer.say, "exiting")
server = Server("tcp://127.0.0.1:0", Answers, dispatcher=sys.argv[1], observers=[observer]).start()
with socket.create_connection(server.addresses[0], timeout=20) as client:
    assert client.makefile("rb").read() == b"answer"
server.stop()
"""


@pytest.mark.parametrize("how", ["return", "exit"])
@pytest.mark.parametrize("dispatcher", ["fork", "prefork:1/sync", "prefork:1/fork", "sync"])
def test_a_forked_process_tells_its_observers_that_it_is_about_to_exit(dispatcher, how):
    lines = [line.split() for line in python(ENDING, dispatcher, how).stdout.splitlines()]
    [accepting], [serving], [program] = ([pid for said, pid in lines if said == word] for word in ("accepted", "left", "exiting"))
    forked = [pid for pid in dict.fromkeys((serving, accepting)) if pid != program]
    assert [pid for said, pid in lines if said == "ending"] == forked
    for pid in forked:
        assert [said for said, which in lines if which == pid][-1] == "ending"


def test_an_observer_that_is_given_twice_is_told_once():
    recorder = Recorder()
    server = Server("tcp://127.0.0.1:0", Tells, observers=[recorder, recorder]).start()
    with socket.create_connection(server.addresses[0], timeout=LATE) as client:
        ask(client)
    server.stop()
    assert recorder.names() == ["entered", "left", "ended"]


def test_workers_that_leave_are_told_of():
    told = python(
        """
import os, signal
from socketkit import Server, StreamRequestHandler

class Tells:
    def server_started(self, server):
        self.alive = set()
    def worker_started(self, server, worker):
        self.alive.add(worker)
        if len(self.alive) == 2:
            server.stop(wait=False)
    def worker_left(self, server, worker):
        self.alive.remove(worker)
    def worker_died(self, server, worker, reason):
        print("died", reason)

tells = Tells()
Server("tcp://127.0.0.1:0", StreamRequestHandler, dispatcher="prefork:2", observers=[tells]).serve_forever()
print(tells.alive)
"""
    )
    assert told.stdout == "set()\n"
