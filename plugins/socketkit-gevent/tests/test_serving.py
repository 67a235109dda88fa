"""The dispatcher's limit, and how a server on greenlets stops and leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import gevent
import gevent.event
import pytest
from socketkit_gevent import Gevent

from socketkit import Classic, Graceful, Server, StreamRequestHandler
from socketkit.testing.clients import talk
from socketkit.testing.programs import python


class Greeting(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"hello\n")
        self.wfile.write(self.rfile.readline())


class Stopping:
    """An observer that reports when a drain begins."""

    def __init__(self):
        self.begun = threading.Event()

    def server_stopping(self, server):
        self.begun.set()


@contextlib.contextmanager
def clients(server, count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(count)]


def greeted(client):
    """Return whether the client's handler runs, without waiting."""
    client.setblocking(False)
    try:
        return client.recv(100) == b"hello\n"
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


# --- the bound -------------------------------------------------------------------------------------------------------


def test_the_bound_is_hard_and_what_is_beyond_it_waits_for_its_turn():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(3)).start()
    with clients(server, 6) as everyone:
        first, rest = everyone[:3], everyone[3:]
        assert [client.recv(100) for client in first] == [b"hello\n"] * 3
        assert server.stats().accepted == 3
        for done, client in zip(first, rest, strict=True):
            assert not greeted(client)
            done.sendall(b"bye\n")
            assert done.recv(100) == b"bye\n"
            assert client.recv(100) == b"hello\n"
        assert server.stats().active == 3
        server.stop(drain=0)
    assert server.stats().outcomes == {"finished": 6}


def test_a_full_server_stops_at_once():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(1)).start()
    with clients(server, 2) as (inside, waiting):
        assert inside.recv(100) == b"hello\n"
        begun = time.monotonic()
        report = server.stop(drain=0.05)
        assert time.monotonic() - begun < 2
        assert (report.finished, report.forced, report.stuck) == (0, 2, ())
        assert waiting.makefile("rb").read() in {b"", b"hello\n"}  # accepted at the earliest when the other was forced to end
    assert server.stats().accepted == 2


def test_a_bound_of_one_serves_one_after_the_other():
    running, most = 0, 0

    def handler(request, client_address, server):
        nonlocal running, most
        running += 1
        most = max(most, running)
        request.recv(100)
        running -= 1

    server = Server("tcp://127.0.0.1:0", handler, dispatcher=Gevent(1)).start()
    with clients(server, 20) as everyone:
        for client in everyone:
            client.sendall(b"x")
        for client in everyone:
            assert client.recv(100) == b""
    server.stop()
    assert most == 1
    assert server.stats().outcomes == {"finished": 20}


# --- the loop --------------------------------------------------------------------------------------------------------


class Endless:
    """An intake that always has a unit and signals it, as under a flood of requests."""

    def __init__(self, unit):
        self.stopped = False
        self.taken = 0
        self.ends = socket.socketpair()
        self.ends[1].send(b"x")
        self.unit = unit

    def take(self, timeout):
        self.taken += 1
        assert self.taken < 10_000
        return lambda: self.unit(self)

    def fileno(self):
        return self.ends[0].fileno()

    def due(self):
        return None

    def woken_by_signals(self):
        return contextlib.nullcontext()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for end in self.ends:
            end.close()


def drive(intake, recipe):
    live = recipe.start(None)
    live.drive(lambda: intake)
    assert live.wait(10)
    live.close()


def test_requests_run_while_more_keep_coming():
    def stop(intake):
        intake.stopped = True

    intake = Endless(stop)
    drive(intake, Gevent(None))
    assert intake.taken < 200


def test_a_stop_whose_wake_up_was_read_already_is_seen():
    class Swallows(Endless):
        def take(self, timeout):
            self.ends[0].recv(1)
            self.stopped = True

    drive(Swallows(None), Gevent())


def test_what_the_loop_is_due_to_do_is_done_while_no_request_comes():
    called = threading.Event()

    class Acts(Server):
        calls = 0

        def service_actions(self):
            self.calls += 1
            if self.calls == 3:
                called.set()

    server = Acts("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent())
    serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    assert called.wait(10)
    server.stop()
    serving.join()


# --- stopping --------------------------------------------------------------------------------------------------------


def test_stop_from_another_thread_ends_an_idle_server_and_it_starts_again():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent())
    for _ in range(20):
        server.start()
        assert talk(server.addresses[0], b"x\n") == b"hello\nx\n"
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 1


def test_stop_from_a_handler_ends_the_server_after_it():
    def last(request, client_address, server):
        assert server.stop() is None
        request.sendall(b"stopped\n")

    server = Server("tcp://127.0.0.1:0", last, dispatcher=Gevent()).start()
    address = server.addresses[0]
    assert talk(address, b"") == b"stopped\n"
    report = server.stop()
    assert server.stats().outcomes == {"finished": 1}
    assert report.stuck == ()
    with pytest.raises(ConnectionRefusedError):
        talk(address, b"")


def test_a_drain_lets_a_busy_handler_finish():
    stopping = Stopping()
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(), observers=[stopping]).start()
    with clients(server, 1) as (client,):
        assert client.recv(100) == b"hello\n"
        server.stop(drain=10, wait=False)
        assert stopping.begun.wait(10)
        client.sendall(b"bye\n")
        assert client.recv(100) == b"bye\n"
        report = server.stop()
    assert (report.finished, report.forced, report.stuck) == (1, 0, ())


def test_a_handler_that_reads_at_the_deadline_sees_the_end_and_leaves_in_peace():
    read = []

    class Reads(Greeting):
        def handle(self):
            self.wfile.write(b"hello\n")
            read.append(self.rfile.readline())

    server = Server("tcp://127.0.0.1:0", Reads, dispatcher=Gevent()).start()
    with clients(server, 1) as (client,):
        assert client.recv(100) == b"hello\n"
        report = server.stop(drain=0.05)
    assert (report.finished, report.forced, report.stuck) == (0, 1, ())
    assert read == [b""]
    assert server.stats().outcomes == {"finished": 1}


def test_a_handler_that_waits_for_something_else_at_the_deadline_is_killed():
    cleaned = []

    class Waits(Greeting):
        def handle(self):
            self.wfile.write(b"hello\n")
            gevent.event.Event().wait()

        def finish(self):
            super().finish()
            cleaned.append(True)

    server = Server("tcp://127.0.0.1:0", Waits, dispatcher=Gevent()).start()
    with clients(server, 1) as (client,):
        assert client.recv(100) == b"hello\n"
        report = server.stop(drain=0.05)
        assert client.recv(100) == b""
    assert (report.finished, report.forced, report.stuck) == (0, 1, ())
    assert cleaned == [True]
    assert server.stats().outcomes == {"failed": 1}


def test_requests_that_were_taken_but_have_not_begun_are_accounted_for_when_stopped():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent()).start()
    with clients(server, 100):
        server.stop(drain=0)
    stats = server.stats()
    assert stats.active == 0
    assert stats.accepted == sum(stats.outcomes.values())


def test_a_request_that_has_not_begun_is_not_killed_because_nobody_would_account_for_it():
    ran = []
    intake = Endless(None)
    live = Gevent().start(None)

    def take(timeout):
        live._spawn(lambda: ran.append(True))
        live._kill(live.loops[gevent.get_hub()])
        intake.stopped = True

    intake.take = take
    live.drive(lambda: intake)
    assert live.wait(10)
    live.close()
    assert ran == [True]


def test_a_handler_may_close_its_own_server():
    def closes(request, client_address, server):
        server.server_close()
        request.sendall(b"closed\n")

    server = Server("tcp://127.0.0.1:0", closes, dispatcher=Gevent(), lifecycle=Graceful(drain=20)).start()
    begun = time.monotonic()
    assert talk(server.addresses[0], b"") == b"closed\n"
    server.stop()
    assert time.monotonic() - begun < 5
    assert server.stats().outcomes == {"finished": 1}


# --- without a drain -------------------------------------------------------------------------------------------------


def test_without_a_drain_closing_waits_in_the_thread_that_served():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(), lifecycle=Classic())
    with server, clients(server, 1) as (client,):

        def stop_then_speak():
            assert client.recv(100) == b"hello\n"
            server.stop()
            client.sendall(b"bye\n")

        other = threading.Thread(target=stop_then_speak)
        other.start()
        server.serve_forever()
        assert server.stats().active == 1
        server.server_close()
        other.join()
        assert client.recv(100) == b"bye\n"
    assert server.stats().outcomes == {"finished": 1}


def test_without_a_drain_a_request_goes_on_beside_the_next_run():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(), lifecycle=Classic()).start()
    with clients(server, 1) as (before,):
        assert before.recv(100) == b"hello\n"
        server.stop()
        server.start()
        with clients(server, 1) as (after,):
            assert after.recv(100) == b"hello\n"
            for client in (before, after):
                client.sendall(b"bye\n")
                assert client.recv(100) == b"bye\n"
                assert client.recv(100) == b""
        server.stop()
    server.server_close()
    assert server.stats().outcomes == {"finished": 2}


def test_closing_waits_for_requests_in_the_servers_own_thread():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(), lifecycle=Classic()).start()
    with clients(server, 1) as (client,):
        assert client.recv(100) == b"hello\n"
        server.stop()
        closing = threading.Thread(target=server.server_close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        client.sendall(b"bye\n")
        assert client.recv(100) == b"bye\n"
        closing.join(10)
        assert not closing.is_alive()
    assert server.stats().outcomes == {"finished": 1}


def test_the_bound_counts_the_requests_of_the_run_before():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Gevent(1), lifecycle=Classic()).start()
    with clients(server, 1) as (before,):
        assert before.recv(100) == b"hello\n"
        server.stop()
        server.start()
        with clients(server, 1) as (after,):
            time.sleep(0.1)  # for what should not happen
            assert not greeted(after)
            before.sendall(b"bye\n")
            assert after.recv(100) == b"hello\n"
        server.stop()
    server.server_close()
    assert server.stats().active == 0


def test_without_a_drain_requests_whose_peers_leave_as_it_stops_still_end():
    leaving = []

    def handler(request, client_address, server):
        request.sendall(b"hello\n")
        if request.recv(100) == b"stop\n":
            for client in leaving:
                client.close()  # gives their handlers and the loop work at the same moment
            server.stop()

    server = Server("tcp://127.0.0.1:0", handler, dispatcher=Gevent(), lifecycle=Classic()).start()
    with clients(server, 6) as everyone:
        for client in everyone:
            assert client.recv(100) == b"hello\n"
        stops, *leaving = everyone
        stops.sendall(b"stop\n")
        assert stops.recv(100) == b""
        server.stop()
    assert server.stats().active == 0
    server.server_close()


@pytest.mark.parametrize(("dispatcher", "most"), [("gevent:7", 7), ("prefork:2/gevent:7", 14), (Gevent(None), None)])
def test_a_server_says_how_many_handlers_it_runs_at_once(dispatcher, most):
    assert Server("tcp://127.0.0.1:0", Greeting, dispatcher=dispatcher).max_handlers == most


def test_a_reply_leaves_from_the_address_that_the_datagram_came_to_and_one_socket_serves_all():
    python(
        """
import os, socket
from socketkit import UDP, Server

def answer(request, client_address, server):
    request[1].sendto(request[0].upper(), client_address)

with Server(UDP("*", 0), answer, dispatcher="gevent").start() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(20)
    where, seen = ("127.0.0.77", server.addresses[0][1]), set()
    for _ in range(3):
        client.sendto(b"hello", where)
        assert client.recvfrom(100) == (b"HELLO", where)
        seen.add(len(os.listdir("/proc/self/fd")))
    assert len(seen) == 1
"""
    )
