"""A thread per request: started, tracked and waited for."""

import socket
import threading

import pytest

from socketkit import TCP, Server, Threads
from socketkit._engine.composed import ComposedEngine
from socketkit._system.threads import SureThread
from socketkit.dispatchers.threads import ThreadList, start_thread


class Recorder:
    """A `Work` whose requests wait until they are let go."""

    def __init__(self):
        self.leave, self.ran = threading.Event(), []

    def run(self, request, client_address):
        self.leave.wait(10)
        self.ran.append((request, threading.current_thread()))


def test_each_request_has_a_thread_of_its_own():
    work = Recorder()
    live = Threads().start(work)
    for number in range(3):
        live.dispatch(number, "peer")
    assert not live.wait(0)
    work.leave.set()
    assert live.wait(10)
    assert sorted(request for request, _ in work.ran) == [0, 1, 2]
    assert len({thread for _, thread in work.ran}) == 3


def test_a_drain_waits_for_daemon_threads():
    work = Recorder()
    live = Threads(daemon=True).start(work)
    live.dispatch(1, "peer")
    assert not live.wait(0)
    work.leave.set()
    assert live.wait(10)
    [(_, thread)] = work.ran
    assert thread.daemon


def test_closing_without_a_drain_leaves_daemon_threads_alone():
    inside, leave = threading.Event(), threading.Event()

    def hold(request, client_address, server):
        inside.set()
        leave.wait(10)

    with Server(TCP("127.0.0.1", 0), hold, dispatcher="thread,daemon=true", lifecycle="classic").start() as server:
        with socket.create_connection(server.addresses[0]):
            assert inside.wait(10)
            server.server_close()  # otherwise it waits for the handler
            assert not leave.is_set()
            assert server.stats().active == 1
            leave.set()


def test_ended_threads_are_forgotten_without_being_waited_for():
    threads = ThreadList()
    for _ in range(20):
        start_thread(lambda: None, (), threads, daemon=False)
        for thread in list(threads):
            thread.join()
    threads.reap()
    assert threads == []


def test_a_thread_that_never_started_is_not_on_the_list(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads = ThreadList()
    with pytest.raises(RuntimeError, match="can't start"):
        start_thread(print, (), threads, daemon=False)
    assert threads.join(0)


def test_a_thread_that_a_program_listed_before_it_could_start_is_no_obstacle():
    threads = ThreadList()
    threads.append(threading.Thread())
    assert threads.join(0)


def test_a_thread_does_not_wait_for_itself():
    threads, answers = ThreadList(), []
    start_thread(lambda: answers.append(threads.join(10)), (), threads, daemon=False)
    while not answers:
        threads.join(0.01)
    assert answers == [True]


def test_whoever_waits_does_not_keep_others_from_waiting():
    threads, inside, leave = ThreadList(), threading.Event(), threading.Event()

    def run():
        threads.join(0)  # as a handler does that closes its own server
        inside.set()
        leave.wait(10)

    start_thread(run, (), threads, daemon=False)
    assert inside.wait(10)
    other = threading.Thread(target=threads.join, args=(10,))
    other.start()
    assert not threads.join(0)
    assert not threads.join(0.05)
    leave.set()
    assert threads.join(10)
    other.join()


def test_a_thread_is_known_although_ctrl_c_came_while_it_was_started(monkeypatch):
    def start(thread):
        real(thread)
        raise KeyboardInterrupt

    real = threading.Thread.start
    monkeypatch.setattr(SureThread, "start", start)
    work = Recorder()
    live = Threads().start(work)
    with pytest.raises(KeyboardInterrupt):
        live.dispatch(1, "peer")
    assert not live.wait(0)
    work.leave.set()
    assert live.wait(10)


def test_a_request_that_ctrl_c_ends_is_woken_although_it_was_being_handed_over(monkeypatch):
    monkeypatch.setattr(ComposedEngine, "is_interruptible", True)  # as a classic server without a mix-in is

    class Interrupted:
        def start(self, work):
            self.work = work
            return self

        def dispatch(self, request, client_address):
            threads.append(threading.Thread(target=self.work.run, args=(request, client_address)))
            threads[0].start()
            assert begun.wait(10)
            raise KeyboardInterrupt

        def wait(self, timeout):
            return True

        def close(self):
            pass

    def wait_for_the_client(request, client_address, server):
        begun.set()
        request.recv(1)

    threads, begun = [], threading.Event()
    with Server(TCP("127.0.0.1", 0), wait_for_the_client, dispatcher=Interrupted(), lifecycle="classic") as server:
        with socket.create_connection(server.addresses[0]):
            with pytest.raises(KeyboardInterrupt):
                server.serve_forever()
            threads[0].join(10)
            assert not threads[0].is_alive()
