"""Threads beside those that run handlers: they take no signals, and can be had in a signal handler."""

import signal
import threading

import pytest

from helpers.support import python
from socketkit._system import threads
from socketkit._system.threads import BackgroundThread, aside


@pytest.mark.parametrize("begin", [aside, lambda function: BackgroundThread(function, "test").start()], ids=["aside", "start"])
def test_it_takes_no_signal_from_the_main_thread(begin):
    blocked, over = set(), threading.Event()
    begin(lambda: (blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ())), over.set()))
    assert over.wait(10)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGIO} <= blocked


def test_one_had_in_a_signal_handler_takes_no_signal_from_its_first_moment_on(monkeypatch):
    blocked, start = [], threads._start

    def noting(thread):
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        start(thread)

    monkeypatch.setattr(threads, "_start", noting)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    aside(lambda: None).finish()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGIO} <= blocked[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_one_that_was_asked_for_can_be_waited_for_before_it_has_begun():
    go_on, done = threading.Event(), []
    thread = aside(lambda: done.append(go_on.wait(10)))
    threading.Timer(0.01, go_on.set).start()
    thread.finish()
    assert done == [True]
    assert not thread.is_alive()


def test_the_last_thread_that_the_system_has_does_it(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(BackgroundThread, "start", refuse)
    done = []
    aside(lambda: done.append(threading.get_ident())).finish()
    assert done != [threading.get_ident()]


STILLBORN = """
import contextlib, threading
from socketkit import *
from socketkit._system.threads import BackgroundThread
from socketkit.testing.clients import talk
def no_memory(thread):
    threading.Thread._bootstrap_inner = usual
    raise MemoryError
usual = threading.Thread._bootstrap_inner
def let_the_next_fail(): threading.Thread._bootstrap_inner = no_memory
def echo(request, client_address, server): request.sendall(request.recv(10))
"""


def test_to_start_one_that_has_no_memory_for_its_first_steps_fails_and_does_not_wait():
    python(
        STILLBORN
        + """
done = []
let_the_next_fail()
try:
    BackgroundThread(lambda: done.append(1), "test").start()
except RuntimeError as error:
    assert "no memory for its first steps" in str(error)
    assert not done
else:
    raise AssertionError("it says that it was started")
thread = BackgroundThread(lambda: done.append(2), "test")
thread.start()
thread.finish()
assert done == [2]
"""
    )


def test_a_request_whose_thread_has_no_memory_for_its_first_steps_is_refused_and_the_next_one_is_served():
    python(
        STILLBORN
        + """
with Server(TCP("127.0.0.1", 0), echo, dispatcher="thread").start() as server:
    assert talk(server.addresses[0], b"zero") == b"zero"  # which starts the timer's thread
    while not any(thread.name == "socketkit-timekeeper" and thread.is_alive() for thread in threading.enumerate()): pass
    let_the_next_fail()
    with contextlib.suppress(OSError):
        talk(server.addresses[0], b"one")
    assert talk(server.addresses[0], b"two") == b"two"
assert server.stats().outcomes == {"refused": 1, "finished": 2}, server.stats()
"""
    )


def test_one_is_had_in_a_signal_handler_that_interrupts_the_start_of_another():
    python("""
import signal, threading, os
from socketkit._system.threads import aside
done, main = [], threading.get_ident()
signal.signal(signal.SIGUSR1, lambda number, frame: done.append(aside(lambda: None)))
real = threading._active_limbo_lock
class Interrupted:
    def __enter__(self):
        real.__enter__()
        if threading.get_ident() == main:
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(100): pass
    def __exit__(self, *error): real.__exit__(*error)
threading._active_limbo_lock = Interrupted()
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
assert done
for each in done: each.finish()
""")
