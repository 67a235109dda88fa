"""A server's lifecycle in random order: started, stopped, drained, closed, started again, with clients in every state.

Hypothesis chooses the order. After each step, the ledger balances and the step was quick; at the end, nothing is left behind. Reloading
a configuration is a feature of the command, so `test_reload_model` tests it.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from helpers import innards
from helpers.support import python
from socketkit import TCP, Graceful, Server, StreamRequestHandler
from socketkit._engine.run import Phase
from socketkit.errors import AlreadyServingError
from socketkit.seams import State
from socketkit.testing import Account, Faults, FaultyTransport

DRAIN = 0.05
A_STEP = 2.0
"""The time limit of a step in seconds, far above a drain and what follows it."""


class Reverse(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().rstrip(b"\n")[::-1])


class Events:
    """An observer with which a test waits for the next start, pause or resumption of accepting."""

    def __init__(self):
        self.started, self.paused, self.resumed = (threading.Semaphore(0) for _ in range(3))

    def server_started(self, server):
        self.started.release()

    def accept_paused(self, server, url, error, seconds):
        self.paused.release()

    def accept_resumed(self, server, url, failures):
        self.resumed.release()


class Client:
    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=A_STEP)
        self.sent = b""


class Life(RuleBasedStateMachine):
    """The expected state: whether the server is serving, stopping or idle, and its clients."""

    def __init__(self):
        super().__init__()
        self.before = Account.take()
        self.clients = []
        self.phase = "idle"
        self.stopped_before_start = self.ever_served = self.rests = False
        self.thread = None
        self.last = Counter()
        self.step_began = time.monotonic()

    @initialize(dispatcher=st.sampled_from(["sync", "thread", "pool:16", "adaptive"]))
    def compose(self, dispatcher):
        self.events, self.faults = Events(), Faults()
        self.alone = dispatcher == "sync"  # serves one client at a time
        transport = FaultyTransport(TCP("127.0.0.1", 0), self.faults)
        self.server = Server(transport, Reverse, dispatcher=dispatcher, lifecycle=Graceful(drain=DRAIN), observers=[self.events])

    # --- starting

    def now_serving(self):
        if self.stopped_before_start:
            self.stopped_before_start = False
            assert self.server.stop() is None
        else:
            self.phase = "serving"
            assert self.events.started.acquire(timeout=A_STEP)
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

    @precondition(lambda self: self.phase == "idle" and not self.stopped_before_start)
    @rule(asks=st.booleans())
    def serve_until_a_signal(self, asks):
        """Serve in the main thread, the only one that handles signals."""

        def use():
            assert self.events.started.acquire(timeout=A_STEP)
            with contextlib.ExitStack() as opened:
                if asks:
                    client = Client(self.server.addresses[0])
                    opened.callback(client.socket.close)
                    client.socket.sendall(b"main\n")
                    answers.append(self.rest_of(client))
                os.kill(os.getpid(), signal.SIGTERM)

        answers, before = [], signal.getsignal(signal.SIGTERM)
        user = threading.Thread(target=use)
        user.start()
        self.server.serve_forever()
        user.join(A_STEP)
        self.ever_served = True
        assert answers == [b"niam"] * asks
        assert signal.getsignal(signal.SIGTERM) is before
        self.now_idle()

    # --- stopping

    def now_idle(self):
        self.join()
        self.phase, self.rests = "idle", False
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

    # --- other actions of the program

    @precondition(lambda self: self.phase == "serving")
    @rule()
    def fork(self):
        """Fork; the child has a copy of a server that its parent serves."""
        pid = os.fork()
        if not pid:
            os._exit(0 if self.server.stop() is None else 1)
        ended = os.pidfd_open(pid)
        try:
            assert select.select([ended], [], [], A_STEP)[0], "the child waits for a server that is not its own"
        finally:
            os.close(ended)
            _, status = os.waitpid(pid, 0)
        assert status == 0

    @precondition(lambda self: self.phase == "serving" and not self.rests and not (self.alone and self.clients) and len(self.clients) < 10)
    @rule()
    def pause(self):
        """Use up all descriptors: the listener pauses, and a new client waits."""
        for event in (self.events.paused, self.events.resumed):
            while event.acquire(blocking=False):
                pass
        self.faults.add(errno.EMFILE)
        self.clients.append(Client(self.server.addresses[0]))
        assert self.events.paused.acquire(timeout=A_STEP)
        self.rests = True

    @precondition(lambda self: self.phase == "serving" and self.rests)
    @rule()
    def resume(self):
        """Free descriptors again: the waiting client is accepted."""
        assert self.events.resumed.acquire(timeout=A_STEP)
        self.rests = False

    # --- one request at a time

    @precondition(lambda self: self.phase == "idle")
    @rule(client_comes=st.booleans())
    def handle_request(self, client_comes):
        self.server.timeout = 0.001
        self.server.handle_request()  # no client yet, but now the server listens
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
    def its_phase_is_one_that_may_be_seen_now(self):
        if hasattr(self, "server"):
            may_be = {"idle": {Phase.STOPPED} if self.ever_served else {Phase.NEW}, "serving": {Phase.RUNNING}}
            may_be["stopping"] = {Phase.ENDING, Phase.DRAINING, Phase.STOPPED}
            assert innards.phase(self.server) in may_be[self.phase]

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

    # --- helpers

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


ALONE = """
import logging, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn if a process with threads forks
logging.getLogger("socketkit").addHandler(logging.NullHandler())  # the steps cause warnings on purpose
from faults.test_lifecycle_model import live
live({examples})
"""


def live(examples):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Life, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    )


def test_any_order_of_steps_leaves_the_books_balanced_and_nothing_behind():
    python(ALONE.format(examples=60), guard=100)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_fifty_thousand_orders():
    python(ALONE.format(examples=50_000), guard=20 * 3600)
