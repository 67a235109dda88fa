"""What threads do at the same moment, one step at a time; and the page that lists all of it."""

import gc
import importlib
import inspect
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.interleaving import Lock, interruptions, schedules
from helpers.support import ROOT, python
from socketkit import TCP, Adaptive, Pool, Server
from socketkit._engine import composed, engine, ledger, parking, run, tally, units
from socketkit._engine.holdup import break_off, stuck_in
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import Ledger, ReplicaLedger
from socketkit._engine.observers import Observers
from socketkit._engine.run import Run
from socketkit._engine.steps import engine_of
from socketkit._engine.tally import Tallies
from socketkit._system import tls_socket
from socketkit._system.threads import current_frames
from socketkit.cli import _together
from socketkit.dispatchers import _executor, _workers, adaptive
from socketkit.dispatchers import pool as pools
from socketkit.dispatchers.threads import ThreadList
from socketkit.testing import stepping

HERE = sys.modules[__name__]
ANYWHERE = TCP("127.0.0.1", 0)


def changed_meanwhile(base, change):
    """Return a subclass of a container that `change` changes while it is looked through, as another thread might. A copy looks it through at once."""

    class Changed(base):
        def __iter__(self):
            for number, each in enumerate(super().__iter__()):
                yield each
                if number == 0:
                    change(self)

    return Changed


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_unit_that_comes_back_at_the_end_of_a_run_is_in_one_place():
    for queue, unit, was_taken, everyone in schedules(
        units, lambda: (units.Units(), object()), lambda queue, unit: (queue.again, unit), lambda queue, _: (queue.empty,)
    ):
        assert everyone == ([unit] if was_taken else [])
        assert not queue.turns


class Car:
    begun, noted = False, parking.NEVER

    def fileno(self):
        return 0


def test_a_deadline_entry_may_be_dropped_while_others_expire():
    lot = parking.ParkingLot(SimpleNamespace(arm=lambda *_: None, forget=lambda *_: None), lambda: 1000.0)
    cars = [Car() for _ in range(3)]
    for car in cars:
        lot.park(car, 5.0)
    moment = lot.due()
    lot.leave(cars[2])
    lot._noted[moment] = changed_meanwhile(dict, lambda noted: noted.pop(cars[2]))(lot._noted[moment])
    assert lot.expire(moment) == cars[:2]


def test_what_is_added_during_a_stop_is_called_once():
    calls = []
    with Intake([]) as intake:
        intake.on_stop(lambda: intake.on_stop(lambda: calls.append("added")))
        intake.stop()
    assert calls == ["added"]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_stop_at_the_moment_of_the_start_is_not_lost():
    def make():
        server = Server(ANYWHERE, print)
        engine_of(server)._gate = Lock()
        return server, engine_of(server)

    def begin(_server, made):
        return made.begin, 0.5

    def stop(_server, made):
        return (lambda: made.stop(None, wait=False)), *()

    for first, second in ((begin, stop), (stop, begin)):
        for _server, made, *_ in schedules(engine, make, first, second):
            assert made.run.stopping
            assert not made.stop_before_start, "this stop was meant for that start, and for no later one"


def test_of_two_stops_at_the_same_moment_the_shorter_drain_counts():
    def make():
        made = Run(engine_of(Server(ANYWHERE, print, clock=lambda: 1000.0)), 0.5)
        made.stop(30)
        return (made,)

    for made, *_ in interruptions(run, make, lambda made: (made.stop, 20), lambda made: (made.stop, 10)):
        assert made.left() == 10


class Counted:
    """A dispatcher that counts how often it is started."""

    def __init__(self):
        self.parts = []

    def start(self, _work):
        self.parts.append(SimpleNamespace(dispatch=print, wait=lambda _timeout: True, close=lambda: None))
        return self.parts[-1]


def test_two_threads_that_need_the_dispatcher_at_once_get_the_same():
    def make():
        recipe = Counted()
        made = engine_of(Server(ANYWHERE, print, dispatcher=recipe))
        made._preparing = Lock()
        return recipe, made

    def start(_recipe, made):
        return (made.start_dispatcher,)

    for recipe, _made, one, other in schedules(engine, make, start, start):
        assert one is other
        assert len(recipe.parts) == 1


class Openings:
    """A transport that counts how often it is opened."""

    kind = "stream"
    url = "counted://"

    def __init__(self):
        self.count = 0

    def open(self):
        self.count += 1
        return SimpleNamespace(url=self.url, socket=None, address=None, close=lambda: None)


def test_two_threads_that_enter_a_server_at_once_open_its_listeners_once():
    def make():
        transport = Openings()
        server = Server(transport, print)
        engine_of(server)._preparing = Lock()
        return transport, engine_of(server)

    def enter(_transport, made):
        return (made.open,)

    for transport, _made, *_ in schedules(composed, make, enter, enter):
        assert transport.count == 1


def test_a_server_may_start_while_another_thread_looks_at_those_that_have_started(monkeypatch):
    monkeypatch.setattr(composed, "_started", {})
    known = engine_of(Server(ANYWHERE, print))

    def make():
        composed._started.clear()
        composed.note_started(known)
        return (engine_of(Server(ANYWHERE, print)),)

    for new, found, _ in interruptions(composed, make, lambda _: (composed.started,), lambda new: (composed.note_started, new)):
        assert known in found
        assert set(found) <= {known, new}
        assert composed.started() == [known, new]


def test_a_server_that_nobody_has_any_more_is_forgotten(monkeypatch):
    monkeypatch.setattr(composed, "_started", {})
    composed.note_started(engine_of(Server(ANYWHERE, print)))
    gc.collect()
    assert composed.started() == []
    assert composed._started == {}


def test_without_the_lock_nobody_looks_into_the_frames_of_other_threads(monkeypatch):
    assert threading.get_ident() in current_frames()
    books, request = Ledger(), object()
    books.admit(request, "peer").thread = threading.get_ident()
    assert "test_without_the_lock" in stuck_in(books)[0].stack
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert current_frames() == {}
    assert stuck_in(books)[0].stack == ""
    break_off([])


# --- counts -----------------------------------------------------------------------------------------------------------


def test_a_request_that_fails_at_its_deadline_has_one_failure():
    told = []
    observer = SimpleNamespace(
        request_failed=lambda _server, _peer, error: told.append("timed out" if type(error) is TimeoutError else "failed")
    )

    def make():
        told.clear()
        books = Ledger(None, Observers([observer]))
        books._lock = Lock()
        return books, books.admit(object(), "peer")

    def fail(books, entry):
        return books.fail, entry.request, ValueError()

    def cut(books, entry):
        return books.cut, entry, "request", "too late"

    for _books, entry, *_ in schedules(ledger, make, fail, cut):
        assert told == [entry.outcome]


def test_no_request_of_a_conversation_is_lost_from_the_count():
    def make():
        books = ReplicaLedger(Ledger(), tally.Tally())
        books._lock = Lock()
        return (books,)

    def converse(books):
        return (books.converse,)

    for books, *_ in interruptions((ledger, tally), make, converse, converse):
        assert books._tally.served == 2


@pytest.mark.parametrize("read", [lambda tallies: tallies.settled, lambda tallies: tally.stats_of(tallies.read()).accepted])
def test_a_worker_that_ends_meanwhile_is_counted_once(read):
    def make():
        tallies = Tallies()
        for _ in range(2):
            made = tallies.open()
            made.accept()
            made.settle("finished")
        return tallies, made

    for tallies, _made, count, _ in interruptions(
        (tally, HERE), make, lambda tallies, _: (read, tallies), lambda tallies, made: (tallies.close, made)
    ):
        assert count == 2
        assert tallies.read() == (0, {"finished": 2})


# --- dispatchers ------------------------------------------------------------------------------------------------------


def test_a_spare_worker_may_leave_by_itself_while_all_are_sent_home():
    def make():
        live, worker = Adaptive().start(None), adaptive._Worker()
        live._table.append(adaptive.BATON)
        live._spares.append(worker)
        return live, worker

    for live, worker, _, left in schedules(
        (adaptive, HERE), make, lambda live, _: (live._send_home,), lambda live, worker: (leave, live._spares, worker)
    ):
        assert worker.goes_home is not left
        assert not live._spares


def leave(spares, worker):
    """Do what a worker does that has waited long enough; return whether it leaves by itself."""
    try:
        spares.remove(worker)
    except ValueError:
        return False
    return True


def test_a_run_begins_with_counts_that_no_thread_of_an_earlier_run_changes():
    guarded = []

    class Watched(pools._Pool):
        def __setattr__(self, name, value):
            if name in {"_intake", "_busy", "_free"} and hasattr(self, "_intake"):
                guarded.append(self._counting.locked())
            super().__setattr__(name, value)

    live = Watched(Pool(1))
    live._intake = None
    with Intake([]) as intake:
        intake.stop()
        live._add_thread = lambda: None
        live.drive(lambda: intake)
    assert guarded
    assert all(guarded)


def test_a_thread_serves_the_run_that_started_it(monkeypatch):
    go, taken = threading.Event(), []

    class Late(threading.Thread):
        def run(self):
            go.wait(10)
            super().run()

    monkeypatch.setattr(pools, "SureThread", Late)
    live, later = Pool(1).start(None), SimpleNamespace(stopped=False, stop=lambda: None)
    later.take = lambda: taken.append("a unit of another run") or setattr(later, "stopped", True)
    live._intake = SimpleNamespace(stopped=True)
    live._add_thread()
    live._intake = later
    go.set()
    live.wait(None)
    assert not taken


def test_those_who_wait_for_all_threads_miss_none_that_moves_on_the_list():
    def tidy_up(those):
        if not those._lock.locked():
            those.append(threading.Thread(daemon=True))

    runs, threads = threading.Event(), changed_meanwhile(ThreadList, tidy_up)()
    ended, running = threading.Thread(target=int), threading.Thread(target=runs.wait, args=(10,))
    for thread in (ended, running):
        thread.start()
        list.append(threads, thread)
    ended.join()
    assert not threads.join(0), "one still runs"
    runs.set()
    assert threads.join(10)


def test_an_executor_that_is_shut_down_during_a_submit_leaves_no_thread_behind():
    def make():
        before = set(threading.enumerate())
        executor = _executor.DaemonThreads()
        executor._submitting = Lock()
        return executor, before

    def submit(executor, _before):
        return attempt, executor

    def shut_down(executor, _before):
        return executor.shutdown, False

    for _, before, future, _ in schedules((_executor, _workers), make, submit, shut_down):
        assert future is None or future.result(10) == 0
        for thread in threading.enumerate():
            if thread not in before and thread.name.startswith("socketkit-executor"):
                thread.join(10)
                assert not thread.is_alive()


def attempt(executor):
    """Submit a call; return None if the executor is shut down."""
    try:
        return executor.submit(int)
    except RuntimeError:
        return None


LIVES_ON = """
import contextvars, threading
from socketkit._system.timer import TimerThread
from socketkit.dispatchers._executor import DaemonThreads

whose, seen, done = contextvars.ContextVar("whose", default="nobody's"), [], threading.Event()
timer, executor = TimerThread(), DaemonThreads()

def handle():
    whose.set("of the first request")
    timer.call_later(0, lambda: (seen.append(whose.get()), done.set()))
    executor.submit(int).result()

contextvars.copy_context().run(handle)
done.wait(10)
seen.append(executor.submit(whose.get).result())
timer.close()
executor.shutdown()
print(*seen, sep=", ")
"""


def test_a_thread_that_a_request_starts_does_not_have_its_context_variables():
    result = python(LIVES_ON, env=os.environ | {"PYTHON_THREAD_INHERIT_CONTEXT": "1"})  # what Python 3.14 without the lock does by default
    assert result.stdout == "nobody's, nobody's\n"


# --- layers and commands ----------------------------------------------------------------------------------------------


def test_a_connection_that_is_accepted_during_a_renewal_has_our_kind_of_socket():
    def make():
        contexts = [SimpleNamespace(sslsocket_class=None) for _ in range(2)]
        for context in contexts:
            context.wrap_socket = lambda _request, context=context, **_how: context.sslsocket_class
        return tls_socket.Encryption(contexts[0]), contexts[1]

    for _encryption, _renewed, kind, _ in schedules(
        (tls_socket, HERE),
        make,
        lambda encryption, _: (encryption._encrypt, "request"),
        lambda encryption, renewed: (renew, encryption, renewed),
    ):
        assert kind is tls_socket.TLSSocket


def renew(encryption, context):
    encryption._context = context


def test_all_servers_are_handed_over_although_a_reload_adds_one(monkeypatch):
    handed_over = []

    def hand_over(server):
        together._servers["new"] = "new server"
        handed_over.append(server)

    monkeypatch.setattr(_together, "_hand_over", hand_over)
    wakeup, watch = SimpleNamespace(wake=lambda: None), SimpleNamespace()
    together = _together.Together({}, {"one": "first", "two": "second"}, dict, watch, wakeup)
    together.hand_over()
    assert handed_over == ["first", "second"]


def test_a_step_that_was_given_up_meanwhile_is_not_taken():
    def make():
        steps = stepping.Steps()
        steps._asked.append("step")
        return (steps,)

    for _steps, taken, _ in interruptions(stepping, make, lambda steps: (steps.pop,), lambda steps: (steps._asked.clear,)):
        assert taken in {"step", None}


# --- the page ---------------------------------------------------------------------------------------------------------

PAGE = Path(ROOT, "docs/explanation/free-threading.md").read_text()
ROWS = re.findall(r"^\| `(socketkit[\w.]+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)


def test_what_the_page_names_is_in_the_module_that_it_names():
    assert len(ROWS) > 40
    for module, *texts in ROWS:
        source = inspect.getsource(importlib.import_module(module))
        words = set(re.findall(r"`(\w+)`", " ".join(texts))) - PYTHONS
        assert {word for word in words if not re.search(rf"\b{word}\b", source)} == set(), module


PYTHONS = {"append", "pop", "popleft", "remove", "del", "setdefault", "cache"}
"""Operations on containers; `cache` stands for `functools.cache`."""


def test_the_page_counts_the_rows_that_rest_on_the_processor():
    assert sum(text == "nothing in common" for *_, text in ROWS) == 6
    assert "Six rows above rest on the processor" in PAGE


def test_no_classifier_says_what_nobody_has_tried():
    assert "Free Threading" not in Path(ROOT, "pyproject.toml").read_text()
