"""Both alarms keep the same promises."""

import sys
import threading
import time

import pytest

from socketkit.dispatchers._alarm import Alarm, TimerAlarm, best_alarm

KINDS = [Alarm, *([TimerAlarm] if sys.platform == "linux" else [])]


@pytest.fixture(params=KINDS)
def alarm(request):
    made = request.param()
    yield made
    made.close()
    made.close()


def waits(alarm, seconds):
    """Return how long `watch` takes in another thread, or None if it takes longer than so many seconds."""
    took = []
    begin = time.monotonic()

    def watch():
        alarm.watch()
        took.append(time.monotonic() - begin)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        alarm.wake()
        thread.join(10)
        return None
    return took[0]


def test_it_goes_off_after_the_time_that_was_set(alarm):
    alarm.set(0.05)
    assert 0.04 < waits(alarm, 10) < 5


def test_it_goes_off_once(alarm):
    alarm.set(0.001)
    assert waits(alarm, 10) < 5
    assert waits(alarm, 0.2) is None


def test_one_that_nobody_set_is_silent_until_it_is_woken(alarm):
    assert waits(alarm, 0.1) is None
    alarm.wake()
    assert waits(alarm, 10) < 5


def test_a_thread_that_waits_already_hears_of_one_that_is_set_now(alarm):
    rung = threading.Event()

    def watch():
        while not over.is_set():
            alarm.watch()
            if time.monotonic() >= due:
                rung.set()

    over, due = threading.Event(), float("inf")
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    due = time.monotonic() + 0.01
    alarm.set(0.01)
    assert rung.wait(10)
    over.set()
    alarm.wake()
    thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's timer is Linux's")
def test_the_timer_wakes_nobody_while_it_is_postponed():
    alarm = TimerAlarm()
    for _ in range(20):
        alarm.set(0.05)
        assert waits(alarm, 0.005) is None
    alarm.close()
    alarm.set(1)  # a leader may be a moment late


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's timer is Linux's")
def test_where_there_is_no_ctypes_there_is_the_other_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctypes", None)
    alarm = best_alarm()
    assert type(alarm) is Alarm
    alarm.close()
