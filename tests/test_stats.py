"""The books: one outcome for every request, and a sum that is right whenever it is read."""

import logging
import threading

from helpers.support import python
from socketkit._engine.holdup import stuck_in
from socketkit._engine.ledger import Ledger, ReplicaLedger
from socketkit._engine.observers import Observers
from socketkit._engine.steps import engine_of
from socketkit._system import logs
from socketkit.seams.stats import DrainReport, Stats
from socketkit.socketserver import BaseServer


def test_each_request_has_one_outcome_however_often_it_is_settled():
    ledger, request = Ledger(), object()
    ledger.admit(request, "peer")
    ledger.settle(request)
    ledger.settle(request, "failed")
    assert ledger.stats() == Stats(active=0, outcomes={"finished": 1})


def test_a_peer_that_went_away_is_aborted_and_all_else_failed():
    ledger = Ledger()
    for error in (ConnectionResetError(), BrokenPipeError(), ValueError(), SystemExit()):
        request = object()
        ledger.admit(request, "peer")
        ledger.fail(request, error)
        ledger.settle(request)
    assert ledger.stats().outcomes == {"aborted": 2, "failed": 2}


def test_accepted_is_active_plus_outcomes_at_every_reading():
    ledger, readings, done = Ledger(), [], threading.Event()

    def serve():
        for _ in range(2000):
            request = object()
            ledger.admit(request, "peer")
            ledger.settle(request)

    def read():
        while not done.is_set():
            readings.append(ledger.stats())

    workers = [threading.Thread(target=serve) for _ in range(4)]
    reader = threading.Thread(target=read)
    reader.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    reader.join()
    assert ledger.stats() == Stats(0, {"finished": 8000})
    accepted = [reading.accepted for reading in readings]
    assert accepted == sorted(accepted), "a request that was accepted stays so"
    assert all(0 <= reading.active <= 4 for reading in readings)


def test_a_request_that_a_layer_replaced_keeps_its_entry():
    ledger, raw, wrapped = Ledger(), object(), object()
    entry = ledger.admit(raw, "client")
    ledger.replace(raw, wrapped)
    assert ledger.find(raw) is None
    assert ledger.find(wrapped) is entry
    ledger.settle(wrapped)
    assert ledger.stats().active == 0


def test_stuck_shows_where_the_thread_stands():
    ledger, request, inside, leave = Ledger(), object(), threading.Event(), threading.Event()

    def a_handler_that_waits():
        ledger.admit(request, "peer").thread = threading.get_ident()
        inside.set()
        leave.wait()

    thread = threading.Thread(target=a_handler_that_waits)
    thread.start()
    inside.wait()
    (stuck,) = stuck_in(ledger)
    leave.set()
    thread.join()
    assert stuck.peer == "peer"
    assert stuck.age >= 0
    assert "a_handler_that_waits" in stuck.stack


def test_a_server_without_a_constructor_has_books_too():
    server = object.__new__(BaseServer)
    assert engine_of(server) is engine_of(server)
    assert engine_of(server).ledger.stats() == Stats()


def test_observers_hear_their_events_and_only_those():
    heard = []

    class Watcher:
        def request_accepted(self, server, request, client_address):
            heard.append(("accepted", client_address))

        def request_finished(self, server, client_address, seconds):
            heard.append(("finished", client_address))
            assert seconds >= 0

    ledger, request = Ledger(None, Observers([Watcher(), object()])), object()
    ledger.admit(request, "peer")
    ledger.settle(request)
    assert heard == [("accepted", "peer"), ("finished", "peer")]


def test_an_observer_that_fails_is_logged_once_and_harms_nobody(caplog):
    class Broken:
        def request_accepted(self, *facts):
            raise RuntimeError("observer fell over")

    ledger = Ledger(None, Observers([Broken()]))
    with caplog.at_level(logging.ERROR, "socketkit"):
        for _ in range(3):
            ledger.admit(object(), "peer")
    assert logs.flush()
    assert len(caplog.records) == 1
    assert "observer fell over" in caplog.text
    assert ledger.stats().accepted >= 1


def test_without_observers_nobody_is_called():
    assert not Observers().wants("request_accepted")
    assert not Ledger()._observed


def test_statistics_show_how_many_were_accepted():
    assert "accepted=5" in repr(Stats(2, {"finished": 3}))


def test_a_report_reads_well():
    assert str(DrainReport(3, 1)) == "3 finished, 1 forced, 0 stuck"


def test_the_counts_of_a_process_that_serves_are_part_of_its_parents():
    ledger, settled = Ledger(), []
    tally = ledger.replicas.open()
    replica = ReplicaLedger(ledger, tally, settled.append)
    for outcome in ("finished", "finished", "failed", "of its own kind"):
        request = object()
        replica.admit(request, "peer")
        replica.settle(request, outcome)
        replica.settle(request, outcome)
    running = object()
    replica.admit(running, "peer")
    assert replica.stats().active == 1
    assert ledger.stats() == Stats(1, {"finished": 2, "failed": 2})
    assert (ledger.settled, ledger.active()) == (4, [])
    assert settled[-1] == 4
    ledger.replicas.close(tally)
    assert ledger.stats() == Stats(0, {"finished": 2, "failed": 2, "died": 1})
    assert ledger.settled == 5


def test_what_a_child_of_that_process_does_is_not_counted_twice():
    python(
        """
import os
from socketkit._engine.ledger import Ledger, ReplicaLedger
from socketkit.seams.stats import Stats
ledger, request = Ledger(), object()
replica = ReplicaLedger(ledger, ledger.replicas.open())
replica.admit(request, "peer")
if not (pid := os.fork()):
    replica.settle(request)
    os._exit(0)
os.waitpid(pid, 0)
assert ledger.stats() == Stats(1, {}), ledger.stats()
replica.settle(request)
assert ledger.stats() == Stats(0, {"finished": 1}), ledger.stats()
"""
    )
