"""The leader, the monitor and the spare workers, held still at each of the moments that matter."""

import itertools
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from helpers import innards
from helpers.rooms import Rooms, answers, held
from helpers.support import python
from socketkit import TCP, UDP, Adaptive, Classic, Graceful, Server
from socketkit._system import logs
from socketkit.dispatchers import adaptive
from socketkit.seams import State
from socketkit.testing.clients import ask, talk

ANYWHERE = TCP("127.0.0.1", 0)


@pytest.fixture
def rooms():
    made = Rooms()
    yield made
    made.leave.set()


def serve(rooms, recipe=None, drain=10):
    return Server(ANYWHERE, rooms, dispatcher=recipe or Adaptive(), lifecycle=Graceful(drain=drain)).start()


def test_quick_handlers_need_one_thread_and_no_hand_over(rooms):
    with serve(rooms, Adaptive(handoff=5.0)) as server:
        for _ in range(50):
            assert talk(server.addresses[0], b"fast") == b"done"
        assert len(rooms.threads) == 1
        assert len(innards.live(server)._workers) == 1


def test_a_handler_that_blocks_costs_one_thread_and_stops_nobody(rooms):
    with serve(rooms) as server:
        clients = [held(server, rooms) for _ in range(20)]
        assert talk(server.addresses[0], b"fast") == b"done"
        assert rooms.most == 21
        rooms.leave.set()
        assert all(map(answers, clients))


def test_the_bound_is_hard_and_the_next_one_waits_in_the_kernel(rooms):
    with serve(rooms, Adaptive(3)) as server:
        clients = [held(server, rooms) for _ in range(3)]
        late = socket.create_connection(server.addresses[0], timeout=10)
        late.sendall(b"fast")
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(4)
        late.settimeout(10)
        rooms.leave.set()
        assert answers(late)
        assert all(map(answers, clients))
        assert rooms.most == 3
        assert len(innards.live(server)._workers) <= 3


def test_the_first_to_be_done_leads_on_when_nobody_was_free(rooms):
    one_done = threading.Event()

    def handler(request, client_address, server):
        if request.recv(4) == b"wait":
            rooms.inside.release()
            assert one_done.wait(20)
            request.sendall(b"done")
        else:
            request.sendall(b"fast")

    with Server(ANYWHERE, handler, dispatcher=Adaptive(2), lifecycle=Graceful(drain=10)).start() as server:
        clients = []
        for _ in range(2):
            clients.append(socket.create_connection(server.addresses[0], timeout=10))
            clients[-1].sendall(b"wait")
            rooms.inside.acquire(timeout=10)
        one_done.set()
        for _ in range(10):
            assert talk(server.addresses[0], b"more") == b"fast"
        assert all(map(answers, clients))


def test_a_stop_while_the_leader_is_inside_and_the_monitor_is_held(rooms, monkeypatch):
    held_still = threading.Event()
    with serve(rooms, Adaptive(handoff=0.001)) as server:
        live = innards.live(server)
        monkeypatch.setattr(live, "_pick_up", lambda pick_up=live._pick_up: held_still.is_set() and pick_up())
        client = held(server, rooms)  # the monitor sees that it blocks, and cannot do anything about it
        server.stop(wait=False)
        held_still.set()
        rooms.leave.set()
        report = server.stop()
        assert (report.forced, report.stuck) == (0, ())
        assert answers(client)


class SlowPass:
    """Holds the monitor once it has the baton of a held handler, until the test releases it."""

    def __init__(self, live, rooms, monkeypatch):
        self.passing, self.go_on, self.passed = threading.Event(), threading.Event(), threading.Event()
        self._live, self._rooms, self._pass_baton = live, rooms, live._pass_baton
        self.workers = None
        monkeypatch.setattr(live, "_pass_baton", self)

    def __call__(self):
        if not self._rooms.held:  # the first baton, or that of a quick handler whose thread did not run for long
            self._pass_baton()
            return
        self.passing.set()
        assert self.go_on.wait(20)
        self._pass_baton()
        if not self.passed.is_set():
            self.workers = len(self._live._workers)
            self.passed.set()


def test_a_stop_between_picking_the_baton_up_and_passing_it_on(rooms, monkeypatch):
    with serve(rooms) as server:
        live = innards.live(server)
        slow = SlowPass(live, rooms, monkeypatch)
        client = held(server, rooms)
        assert slow.passing.wait(10)
        server.stop(wait=False)
        rooms.leave.set()
        slow.go_on.set()
        assert server.stop().stuck == ()
        assert answers(client)
        assert live.wait(10)


def test_a_leader_that_is_done_just_as_its_baton_was_taken_becomes_a_spare(rooms, monkeypatch):
    with serve(rooms) as server:
        live = innards.live(server)
        slow = SlowPass(live, rooms, monkeypatch)
        client = held(server, rooms)
        assert slow.passing.wait(10)  # the baton is in the monitor's hand, and there is no spare worker yet
        rooms.leave.set()
        assert answers(client)
        while not live._spares:
            time.sleep(0.001)
        slow.go_on.set()
        assert slow.passed.wait(10)
        assert slow.workers == 1, "the spare one was called, nobody was hired"
        assert talk(server.addresses[0], b"fast") == b"done"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the request that it had just taken is lost
def test_an_error_outside_of_every_request_ends_serving_and_not_just_the_thread_that_met_it(rooms, monkeypatch):
    errors = []

    def serve_it():
        try:
            server.serve_forever()
        except MemoryError as error:
            errors.append(error)

    def fail(now):
        raise MemoryError

    with Server(ANYWHERE, rooms, dispatcher=Adaptive(), lifecycle=Graceful(drain=10)) as server:
        serving = threading.Thread(target=serve_it)
        serving.start()
        assert talk(server.addresses[0], b"fast") == b"done"
        monkeypatch.setattr(innards.live(server), "_set_alarm", fail)
        innards.live(server)._alarm_set = adaptive.LONG_AGO
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            client.sendall(b"fast")
            serving.join(10)
    assert len(errors) == 1


def test_an_error_of_one_run_does_not_end_the_next_one(rooms, monkeypatch):
    def fail(now):
        raise MemoryError

    server = Server(ANYWHERE, rooms, dispatcher=Adaptive(), lifecycle=Classic())
    with server:
        for broken in (True, False):
            with monkeypatch.context() as patched:
                server.start()
                assert talk(server.addresses[0], b"fast") == b"done"
                if broken:
                    patched.setattr(innards.live(server), "_set_alarm", fail)
                    innards.live(server)._alarm_set = adaptive.LONG_AGO
                    with socket.create_connection(server.addresses[0], timeout=10) as client:
                        client.sendall(b"fast")
                        while server.state is State.RUNNING:
                            pass
                    [lost] = innards.active(server)  # the request in whose moment it happened
                    lost.request.close()
                server.stop()
            assert server.state is (State.FAILED if broken else State.STOPPED)


def test_a_leader_that_lays_the_baton_down_after_the_monitor_looked_is_still_found_blocked(rooms, monkeypatch):
    looked = threading.Event()
    with serve(rooms) as server:
        live = innards.live(server)

        def slow_set_alarm(now, set_alarm=live._set_alarm):
            set_alarm(now)
            assert looked.wait(10)

        def look_and_tell(look=live._look):
            look()
            if live._wanted:
                looked.set()

        monkeypatch.setattr(live, "_set_alarm", slow_set_alarm)
        monkeypatch.setattr(live, "_look", look_and_tell)
        client = held(server, rooms)
        assert talk(server.addresses[0], b"fast") == b"done"
        rooms.leave.set()
        assert answers(client)


def test_no_thread_to_be_had_leaves_the_baton_to_whoever_is_done_first(rooms, monkeypatch, caplog):
    with serve(rooms) as server:
        assert talk(server.addresses[0], b"fast") == b"done"
        refused = threading.Event()

        def refuse(thread):
            refused.set()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        client = held(server, rooms)
        assert refused.wait(10)
        late = socket.create_connection(server.addresses[0], timeout=10)
        late.sendall(b"fast")
        rooms.leave.set()
        assert answers(client)
        assert answers(late)
        monkeypatch.undo()
    assert logs.flush()
    assert "can't start new thread" in caplog.text


class Script:
    """An intake that hands out these units, and an alarm that is only noted."""

    def __init__(self, *units):
        self.units = [*units, None]
        self.stopped = False
        self.alarms = []

    def take(self):
        return self.units.pop(0)

    def set(self, seconds):
        self.alarms.append(seconds)

    def wake(self):
        pass


def scripted(*units, **options):
    """Return a live part whose leader would run these units, and the script."""
    live, script = Adaptive(**options).start(None), Script(*units)
    live._intake = live._alarm = script
    return live, script


def test_handlers_that_keep_blocking_are_given_a_thread_before_they_run():
    order = []
    live, script = scripted(lambda: order.append("ran"))
    live._score = adaptive.BLOCKING + 1
    live._spares.append(spare := adaptive._Worker())
    real = live._pass_baton
    live._pass_baton = lambda: (order.append("passed"), real())
    assert live._lead(adaptive._Worker()) is True  # it lost the baton, and did not touch the intake again
    assert order == ["passed", "ran"]
    assert spare.called.acquire(blocking=False)
    assert len(script.units) == 1


def test_the_score_forgets():
    live, _ = scripted(*[lambda: None] * 400)
    live._score = adaptive.BLOCKING
    assert live._lead(adaptive._Worker()) is False
    assert live._score < 1


def test_the_more_have_blocked_the_sooner_the_monitor_looks():
    live, script = scripted(handoff=0.001)
    for score in (0.0, 1.0, 10.0, 1000.0):
        live._score = score
        live._set_alarm(0.0)
    assert script.alarms[0] == 0.002
    assert script.alarms == sorted(script.alarms, reverse=True)
    assert script.alarms[-1] == 2 * adaptive.SHORTEST


@pytest.mark.parametrize(("usual", "patience"), [(150e-6, 600e-6), (1e-6, 1e-3 / 41), (900e-6, 1e-3)])
def test_a_handler_that_takes_what_they_usually_take_is_not_hurried(monkeypatch, usual, patience):
    now = itertools.count()
    monkeypatch.setattr(adaptive, "SHORTEST", 0.0)
    monkeypatch.setattr(adaptive, "time", SimpleNamespace(monotonic=lambda: next(now) * usual))  # looked at before and after each
    live, _ = scripted(*[lambda: None] * 90, handoff=0.001)
    live._score = 10 / adaptive.DECAY**90
    assert live._lead(adaptive._Worker()) is False
    live._set_alarm(0.0)
    assert live._patience == pytest.approx(patience, rel=0.02)


def test_one_that_has_blocked_says_nothing_about_what_they_usually_take():
    live, _ = scripted(handoff=0.001)
    live._learn(0.1)
    assert live._usual == 0.0


def test_no_patience_is_longer_than_the_handoff():
    live, script = scripted(handoff=1e-6)
    live._set_alarm(0.0)
    assert script.alarms == [2e-6]


def late(live):
    """Have the monitor find that the leader is late, with a spare worker at hand; return that one."""
    live._spares.append(spare := adaptive._Worker())
    live._alarm_set = adaptive.LONG_AGO
    live._look()
    return spare


def test_one_that_was_only_slow_does_not_count_as_blocked():
    live, _ = scripted(lambda: late(live), handoff=60.0)
    assert live._lead(adaptive._Worker()) is True
    assert live._score == 0


def test_one_that_has_blocked_counts_once():
    live, _ = scripted(lambda: late(live), handoff=0.0)
    assert live._lead(adaptive._Worker()) is True
    assert live._score == pytest.approx(1.0, abs=0.02)


def test_one_that_was_quick_leaves_the_baton_to_whoever_leads_now():
    def lose():
        spare = late(live)
        assert spare.called.acquire(blocking=False)
        live._leader = spare
        live._table.append(adaptive.BATON)  # it is inside a unit of its own

    live, script = scripted(lose, lambda: None, handoff=60.0)
    loser = adaptive._Worker()
    assert live._lead(loser) is True
    assert list(live._table) == [adaptive.BATON]
    live._retired = True  # or it would wait
    assert live._wait_spare(loser) is False
    assert list(live._table) == [adaptive.BATON]
    assert len(script.units) == 2


def test_one_that_has_blocked_leads_on_if_the_baton_is_to_be_had():
    def lose():
        live._leader = late(live)
        live._table.append(adaptive.BATON)

    ran = []
    live, _ = scripted(lose, lambda: ran.append(1), handoff=0.0)
    assert live._lead(adaptive._Worker()) is False
    assert ran == [1]


def test_whoever_is_done_first_takes_the_baton_that_nobody_was_free_for():
    live, _ = scripted(workers=1)
    live._workers.add(worker := adaptive._Worker())
    live._table.append(adaptive.BATON)
    live._look()  # the leader is late, and there is nobody else
    assert list(live._table) == [adaptive.BATON]
    assert live._wait_spare(worker) is True
    assert not live._table
    assert not live._spares


def test_spare_workers_end_after_a_while(rooms, monkeypatch):
    monkeypatch.setattr(adaptive, "SPARE_SECONDS", 0.05)
    with serve(rooms) as server:
        clients = [held(server, rooms) for _ in range(5)]
        rooms.leave.set()
        assert all(map(answers, clients))
        deadline = time.monotonic() + 10
        while len(innards.live(server)._workers) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(innards.live(server)._workers) == 1
        assert talk(server.addresses[0], b"fast") == b"done"


def test_streams_and_datagrams_share_the_workers(rooms):
    def either(request, client_address, server):
        if isinstance(request, tuple):
            request[1].sendto(request[0], client_address)
        else:
            rooms(request, client_address, server)

    with Server([ANYWHERE, UDP("127.0.0.1", 0), ANYWHERE], either, dispatcher=Adaptive(), lifecycle=Graceful(drain=10)).start() as server:
        stream, datagram, other = server.addresses
        client = held(server, rooms)
        assert talk(other, b"fast") == b"done"
        assert ask(datagram, b"hello") == b"hello"
        rooms.leave.set()
        assert answers(client)
        assert stream != other


def test_nothing_is_left_after_a_stop_under_load(rooms):
    before = set(threading.enumerate())
    with serve(rooms) as server:
        stop, answered, address = threading.Event(), [], server.addresses[0]

        def client():
            while not stop.is_set():
                try:
                    answered.append(talk(address, b"fast"))
                except OSError:
                    return

        clients = [threading.Thread(target=client) for _ in range(8)]
        for each in clients:
            each.start()
        while len(answered) < 200:
            time.sleep(0.001)
        report = server.stop()
        stop.set()
        for each in clients:
            each.join()
    assert report.stuck == ()
    assert server.stats().active == 0
    assert set(threading.enumerate()) == before


def test_stress_with_the_smallest_switch_interval():
    python(
        """
import random, sys, threading, time
from socketkit import Adaptive, Graceful, Server, TCP
from socketkit.testing.clients import talk
sys.setswitchinterval(1e-6)
seed = random.randrange(1 << 30)
print("seed", seed)
def handler(request, peer, server):
    number = request.recv(100)
    if int(number) % 7 == 0: time.sleep(0.003)
    request.sendall(number)
wrong = []
for round_ in range(5):
    with Server(TCP("127.0.0.1", 0), handler, dispatcher=Adaptive(6, handoff=0.0005), lifecycle=Graceful(drain=10)).start() as server:
        def client(first):
            for number in range(first, first + 60):
                if talk(server.addresses[0], str(number).encode()) != str(number).encode(): wrong.append(number)
        threads = [threading.Thread(target=client, args=(index * 1000,)) for index in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        report = server.stop()
        assert report.stuck == () and report.forced == 0, report
        assert server.stats().outcomes == {"finished": 480}, server.stats()
assert not wrong, wrong
assert threading.active_count() == 1, threading.enumerate()
""",
        guard=50,
    )


IDLE = """
import os, subprocess, sys, time
from socketkit import *
from socketkit.testing.clients import talk
def alarms():
    for number in os.listdir("/proc/self/fdinfo"):
        try:
            lines = open(f"/proc/self/fdinfo/{number}").read().splitlines()
        except FileNotFoundError:  # that of the listing itself
            continue
        yield from (line for line in lines if line.startswith("it_value:") and line != "it_value: (0, 0)")
def watch(server, trace):
    quiet = 0
    while quiet < 2:  # the last request has set an alarm, and whoever it wakes may set another one
        time.sleep(0.02)
        quiet = 0 if list(alarms()) else quiet + 1
    tracer = subprocess.Popen(["strace", "-f", "-q", "-o", trace, "-p", str(os.getpid())], stderr=subprocess.DEVNULL)
    while any("TracerPid:\\t0" in open(f"/proc/self/task/{task}/status").read() for task in os.listdir("/proc/self/task")): pass
    time.sleep(2)  # nothing is ordered by this: it is the time in which nothing happens
    tracer.terminate()
    tracer.wait()
"""


def wake_ups(program, trace):
    """Return what a program's threads did while it watched: nothing, if each is still in the wait it was in."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    python(IDLE + program, str(trace))
    calls = trace.read_text()
    waiters = [line.split()[0] for line in calls.splitlines() if "epoll_wait" in line or "select6(" in line]
    assert waiters
    return calls if len(waiters) != len(set(waiters)) else ""


def test_an_idle_server_makes_no_wake_up(tmp_path):
    assert not wake_ups(
        """
class Answer(StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline())
server = Server(TCP("127.0.0.1", 0), Answer).start()
assert talk(server.addresses[0], b"hello\\n") == b"hello\\n"
watch(server, sys.argv[1])
server.stop()
""",
        tmp_path / "trace",
    )


def test_a_server_is_idle_again_when_conversations_have_come_and_gone(tmp_path):
    assert not wake_ups(
        """
import socket
from socketkit._engine import parking
parking.GRAIN = 0.002  # so that not many conversations make many deadlines
class Answer(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline()
        if line == b"stay\\n": self.timeout = 60
        self.wfile.write(line)
server = Server(TCP("127.0.0.1", 0), Answer, dispatcher=Adaptive(idle=1.5)).start()
staying = socket.create_connection(server.addresses[0])
staying.sendall(b"stay\\n")
assert staying.recv(10) == b"stay\\n"
for _ in range(100):
    with socket.create_connection(server.addresses[0]) as client:
        for _ in range(2):
            client.sendall(b"hello\\n")
            assert client.recv(10) == b"hello\\n"
while server.stats().active > 1: pass
watch(server, sys.argv[1])
staying.close()
server.stop()
""",
        tmp_path / "trace",
    )
