"""A server's life in any order: started, stopped, drained, closed, served again, with clients in every state.

Hypothesis makes up the order. After each step the books balance and nothing has taken long; after the last one nothing is left.
"""

import contextlib
import socket
import threading
import time
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from socketkit import TCP, Graceful, Server, StreamRequestHandler
from socketkit.errors import AlreadyServingError
from socketkit.serving import State
from socketkit.testing import Account

DRAIN = 0.05
A_STEP = 2.0
"""Seconds that no step may take; a drain, and what comes after it, is far below."""


class Reverse(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().rstrip(b"\n")[::-1])


class Started:
    """An observer that lets one wait for the next start."""

    def __init__(self):
        self.events = threading.Semaphore(0)

    def server_started(self, server):
        self.events.release()


class Client:
    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=A_STEP)
        self.sent = b""


class Life(RuleBasedStateMachine):
    """What is known of the server: whether it serves, is being stopped, or neither; and which clients it has."""

    def __init__(self):
        super().__init__()
        self.before = Account.take()
        self.clients = []
        self.phase = "idle"
        self.stopped_before_start = self.ever_served = False
        self.thread = None
        self.last = Counter()
        self.step_began = time.monotonic()

    @initialize(dispatcher=st.sampled_from(["sync", "thread", "pool:16", "adaptive"]))
    def compose(self, dispatcher):
        self.started = Started()
        self.alone = dispatcher == "sync"  # it serves one client at a time
        self.server = Server(TCP("127.0.0.1", 0), Reverse, dispatcher=dispatcher, lifecycle=Graceful(drain=DRAIN), observers=[self.started])

    # --- starting

    def now_serving(self):
        if self.stopped_before_start:
            self.stopped_before_start = False
            assert self.server.stop() is None
        else:
            self.phase = "serving"
            assert self.started.events.acquire(timeout=A_STEP)
        self.ever_served = True

    @precondition(lambda self: self.phase == "idle")
    @rule()
    def start(self):
        assert self.server.start() is self.server
        self.now_serving()

    @precondition(lambda self: self.phase == "idle")
    @rule()
    def serve_in_a_thread(self):
        self.join()
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        if self.stopped_before_start:
            self.join()
        self.now_serving()

    @precondition(lambda self: self.phase == "serving")
    @rule()
    def start_twice(self):
        with pytest.raises(AlreadyServingError):
            self.server.start()
        with pytest.raises(AlreadyServingError):
            self.server.serve_forever()

    # --- stopping

    def now_idle(self):
        self.join()
        self.phase = "idle"
        assert self.server.stats().active == 0
        assert self.server.state is State.STOPPED or not self.ever_served
        self.drop_clients()

    @rule(drain=st.sampled_from([None, 0, 0.02]))
    def stop(self, drain):
        if not self.ever_served and self.phase == "idle":
            self.stopped_before_start = True
        report = self.server.stop(drain)
        if self.phase != "idle":
            assert report is not None
            assert report.stuck == ()
            self.now_idle()

    @precondition(lambda self: self.phase == "serving")
    @rule(drain=st.sampled_from([None, 0]))
    def stop_without_waiting(self, drain):
        assert self.server.stop(drain, wait=False) is None
        self.phase = "stopping"

    @precondition(lambda self: self.phase == "serving")
    @rule(count=st.integers(2, 8))
    def stop_from_many_threads(self, count):
        reports = []
        threads = [threading.Thread(target=lambda: reports.append(self.server.stop())) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(A_STEP)
            assert not thread.is_alive()
        self.now_idle()
        assert len(set(reports)) == 1

    @rule(times=st.integers(1, 2))
    def close(self, times):
        for _ in range(times):
            self.server.server_close()
        if self.phase != "idle":
            self.now_idle()
        assert self.server.addresses == []

    # --- one request at a time

    @precondition(lambda self: self.phase == "idle")
    @rule(client_comes=st.booleans())
    def handle_request(self, client_comes):
        self.server.timeout = 0.001
        self.server.handle_request()  # nobody is there, but now it listens
        if client_comes:
            self.server.timeout = A_STEP
            client = Client(self.server.addresses[0])
            self.clients.append(client)
            client.socket.sendall(b"alone\n")
            self.server.handle_request()
            assert self.rest_of(client) == b"enola"
            self.leave(client)

    # --- clients

    @precondition(lambda self: self.phase == "serving" and not (self.alone and self.clients) and len(self.clients) < 10)
    @rule()
    def connect(self):
        self.clients.append(Client(self.server.addresses[0]))

    def some(self, data):
        return data.draw(st.sampled_from(self.clients))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def send_half(self, data):
        client = self.some(data)
        with self.while_it_may_be_stopping():
            client.socket.sendall(b"half")
            client.sent += b"half"

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def finish(self, data):
        client = self.some(data)
        with self.while_it_may_be_stopping():
            client.socket.sendall(b" whole\n")
            answer = self.rest_of(client)
            assert answer == (client.sent + b" whole")[::-1] or (self.phase == "stopping" and answer == b"")
        self.leave(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), how=st.sampled_from(["close", "reset", "half-close"]))
    def go_away(self, data, how):
        client = self.some(data)
        if how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif how == "half-close":
            with self.while_it_may_be_stopping():
                client.socket.shutdown(socket.SHUT_WR)
                assert self.rest_of(client) in {client.sent[::-1], b""}
        self.leave(client)

    # --- at each step, and at the end

    @invariant()
    def the_books_balance(self):
        if not hasattr(self, "server"):
            return
        stats = self.server.stats()
        assert stats.accepted == stats.active + sum(stats.outcomes.values())
        now = Counter(stats.outcomes)
        assert now >= self.last, "an outcome was taken back"
        self.last = now
        assert set(now) <= {"finished", "aborted", "failed", "refused"}

    @invariant()
    def no_step_takes_long(self):
        seconds, self.step_began = time.monotonic() - self.step_began, time.monotonic()
        assert seconds < A_STEP

    def teardown(self):
        if hasattr(self, "server"):
            self.server.stop()
            self.server.server_close()
            self.join()
            assert self.server.stats().active == 0
        self.drop_clients()
        left = self.before.left_since()
        assert left == []

    # --- what steps are made of

    def join(self):
        if self.thread is not None:
            self.thread.join(A_STEP)
            assert not self.thread.is_alive()
            self.thread = None

    @contextlib.contextmanager
    def while_it_may_be_stopping(self):
        try:
            yield
        except OSError:  # a reset; or "not connected" after one
            assert self.phase == "stopping"

    @staticmethod
    def rest_of(client):
        return b"".join(iter(lambda: client.socket.recv(1000), b""))

    def leave(self, client):
        client.socket.close()
        self.clients.remove(client)

    def drop_clients(self):
        while self.clients:
            self.leave(self.clients[0])


def live(examples):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Life, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    )


def test_any_order_of_steps_leaves_the_books_balanced_and_nothing_behind():
    live(60)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_fifty_thousand_orders():
    live(50_000)
