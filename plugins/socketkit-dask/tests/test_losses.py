"""Workers and schedulers that go away: what is computed again, what fails, and what waits."""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import dask_replies
import pytest
from dask_clusters import Held, Kept, Line, Scheduler, Watched, until
from socketkit_dask import ClusterError, WorkersLostError

from socketkit import TCP, Graceful, logs


def serve(scheduler, **options):
    recipe = Kept(scheduler.address, **options)
    return Watched(TCP("127.0.0.1", 0), dask_replies.Replies, dispatcher=recipe, lifecycle=Graceful(drain=5)).start()


def room(server):
    return server.live._cluster.room()


def is_paused(server):
    """Return whether the serving thread has noticed that there is no room at all."""
    live = server.live
    return room(server) == 0 and live._is_paused


def settled(server):
    until(lambda: not server.stats().active)
    return dict(server.stats().outcomes)


@pytest.fixture(params=[0, 3], ids=["no failures allowed", "three failures allowed"])
def scheduler(request, cluster, tmp_path):  # `cluster` has warmed up Dask
    with Scheduler(tmp_path, request.param) as scheduler:
        yield scheduler


@pytest.fixture
def held(tmp_path):
    with Held(tmp_path) as held:
        yield held


def deaths(folder):
    """Return the numbers of the processes that a message has killed."""
    path = folder / "deaths"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("retries", [0, 1])
def test_a_message_that_kills_its_worker_is_tried_again_as_often_as_allowed_and_fails_alone(scheduler, retries):
    for _ in range(4):
        scheduler.work()
    with serve(scheduler, retries=retries) as server, ThreadPoolExecutor(20) as clients:

        def ask(number):
            with Line(server.addresses[0]) as client:
                return client.ask(f"die {scheduler.folder}" if number == 10 else f"upper a{number}")

        until(lambda: room(server) >= 8)
        answers = list(clients.map(ask, range(20))) if retries else [ask(10), ask(0)]
        expected = ["" if number == 10 else f"A{number}" for number in (range(20) if retries else (10, 0))]
        assert answers == expected
        error = server.error()
        assert (type(error), error.attempts) == (WorkersLostError, retries + 1)
        assert len(set(deaths(scheduler.folder))) == retries + 1
        assert settled(server) == {"finished": len(expected) - 1, "failed": 1}


@pytest.mark.parametrize("scheduler", [3], indirect=True, ids=["default"])
def test_a_load_in_which_a_worker_is_killed_loses_no_request(scheduler):
    workers = [scheduler.work() for _ in range(3)]
    with serve(scheduler, backlog=3) as server, ThreadPoolExecutor(8) as clients:
        until(lambda: room(server) == 12)
        halfway = threading.Barrier(9)

        def ask(number):
            with Line(server.addresses[0]) as client:
                answers = [client.ask(f"upper a{number}-{count}") for count in range(20)]
                halfway.wait(30)
                return answers + [client.ask(f"upper b{number}-{count}") for count in range(40)]

        asked = [clients.submit(ask, number) for number in range(8)]
        halfway.wait(30)
        scheduler.kill(workers[0])
        for number, each in enumerate(asked):
            assert each.result(40) == [f"A{number}-{count}" for count in range(20)] + [f"B{number}-{count}" for count in range(40)]
        assert settled(server) == {"finished": 8}


@pytest.mark.parametrize("scheduler", [3], indirect=True, ids=["default"])
def test_a_message_whose_worker_is_killed_is_computed_on_another(scheduler, held):
    workers = {program.pid: program for program in (scheduler.work(), scheduler.work())}
    with serve(scheduler) as server, Line(server.addresses[0]) as client:
        client.tell(str(held))
        first = held.begun()
        scheduler.kill(workers[first])
        second = held.begun()
        assert second != first
        held.leave()
        assert client.hear() == f"held by {second}"


@pytest.mark.parametrize("scheduler", [3], indirect=True, ids=["default"])
def test_without_workers_nothing_is_taken_and_what_was_taken_waits_until_its_patience_is_over(scheduler, held, caplog):
    caplog.set_level(logging.INFO, "socketkit_dask")
    worker = scheduler.work()
    with serve(scheduler, patience=1.0) as server, Line(server.addresses[0]) as client:
        client.tell(str(held))
        held.begun()
        scheduler.kill(worker)
        until(lambda: is_paused(server))
        with Line(server.addresses[0]) as waiting:
            waiting.tell("upper a")
            assert client.hear() == ""
            error = server.error()
            assert isinstance(error, ClusterError)
            assert "has had no workers for 1 s; start one with `dask worker`" in str(error)
            assert server.stats().accepted == 1
            scheduler.work()
            assert waiting.hear() == "A"
        assert settled(server) == {"failed": 1, "finished": 1}
    logs.flush()
    assert caplog.text.count("has no workers; nothing more is accepted until it has") <= 2  # perhaps also before the first was there
    assert "has workers again" in caplog.text


@pytest.mark.parametrize("scheduler", [3], indirect=True, ids=["default"])
def test_a_scheduler_that_goes_away_fails_what_it_had_and_is_used_again_when_it_is_back(scheduler, held, caplog):
    caplog.set_level(logging.INFO, "socketkit_dask")
    scheduler.work()
    port = int(scheduler.address.rpartition(":")[2])
    with serve(scheduler) as server, Line(server.addresses[0]) as client, contextlib.ExitStack() as stack:
        client.tell(str(held))
        held.begun()
        scheduler.kill(scheduler.programs[0])
        assert client.hear() == ""
        assert isinstance(server.error(), ClusterError)
        until(lambda: is_paused(server))
        waiting = stack.enter_context(Line(server.addresses[0]))
        waiting.tell("upper a")
        held.leave()
        scheduler.start(port)
        scheduler.work()
        assert waiting.hear() == "A"
    assert settled(server) == {"failed": 1, "finished": 1}
    assert "Traceback" not in caplog.text
    logs.flush()
    assert caplog.text.count(f"lost the scheduler {scheduler.address}; nothing more is accepted until it is back") == 1
    assert f"the scheduler {scheduler.address} is back" in caplog.text


@pytest.mark.parametrize("scheduler", [3], indirect=True, ids=["default"])
def test_a_server_without_its_scheduler_stops(scheduler):
    scheduler.work()
    with serve(scheduler) as server:
        with Line(server.addresses[0]) as client:
            assert client.ask("upper a") == "A"
        scheduler.kill(scheduler.programs[0])
        report = server.stop()
        assert (report.forced, report.stuck) == (0, ())
