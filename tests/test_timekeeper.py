"""The thread that keeps the time: each appointment once, in order, not early, and gone with its owner."""

import contextlib
import signal
import sys
import threading

import pytest

from helpers.support import python
from socketkit._system.timer import TimerThread
from socketkit.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def keeper(clock):
    with contextlib.closing(TimerThread(clock)) as made:
        yield made


def test_what_is_due_is_done_in_order_and_nothing_early(keeper, clock):
    done, over = [], threading.Semaphore(0)

    def note(name):
        done.append((name, clock()))
        over.release()

    for name, seconds in (("late", 50.0), ("soon", 5.0), ("also late", 50.0)):
        keeper.call_later(seconds, lambda name=name: note(name))
    begin = clock()
    clock.advance(5.0)
    assert over.acquire(timeout=10)
    assert done == [("soon", begin + 5.0)]
    clock.advance(45.0)
    assert over.acquire(timeout=10)
    assert over.acquire(timeout=10)
    assert [name for name, _ in done] == ["soon", "late", "also late"]


def test_an_appointment_may_make_another_one(keeper, clock):
    over = threading.Event()
    keeper.call_later(1.0, lambda: keeper.call_later(0.0, over.set))
    clock.advance(1.0)
    assert over.wait(10)


def test_one_that_raises_does_not_stop_the_time(keeper, clock, caplog):
    over = threading.Event()
    keeper.call_later(1.0, lambda: 1 / 0)
    keeper.call_later(1.0, over.set)
    clock.advance(1.0)
    assert over.wait(10)


def test_nothing_is_done_after_it_was_closed_and_its_thread_is_gone(clock):
    keeper, done = TimerThread(clock), []
    keeper.call_later(1.0, lambda: done.append(1))
    keeper.close()
    keeper.close()
    clock.advance(5.0)
    assert done == []
    assert "socketkit-timekeeper" not in [thread.name for thread in threading.enumerate()]


def test_it_may_be_closed_from_within(clock):
    keeper, over = TimerThread(clock), threading.Event()

    def close():
        keeper.close()
        over.set()

    keeper.call_later(0.0, close)
    assert over.wait(10)


def test_real_time_passes_too():
    with contextlib.closing(TimerThread()) as keeper:
        over = threading.Event()
        keeper.call_later(0.05, over.set)
        assert over.wait(10)


def test_it_takes_no_signal_from_whom_it_shall_interrupt(keeper):
    blocked, over = set(), threading.Event()
    keeper.call_later(0.0, lambda: (blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ())), over.set()))
    assert over.wait(10)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGIO} <= blocked


ENDED = """
import os, socket
from socketkit import Limits, Server
from socketkit.testing.programs import wait_until

with Server("tcp://127.0.0.1:0", "helpers.interpreted:Words", dispatcher="interpreters:1/sync", limits=Limits(request=60)) as server:
    before = set(os.listdir("/proc/self/task"))
    server.start()
    with socket.create_connection(server.addresses[0], timeout=60) as client:
        assert client.recv(100)  # a handler runs, so a deadline is kept
    server.stop()
wait_until(lambda: set(os.listdir("/proc/self/task")) <= before)  # a thread may be listed for a moment after its end
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has interpreters since 3.14")
@pytest.mark.timeout(120)
def test_none_outlives_the_interpreter_that_it_is_in():
    python(ENDED, guard=100)
