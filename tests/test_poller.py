"""Both pollers keep the same promises."""

import select
import selectors
import socket
import threading
import time

import pytest

from helpers.interleaving import schedules
from socketkit._engine import poller as pollers
from socketkit._engine.poller import EpollPoller, SelectorPoller
from socketkit._system.wakeup import Wakeup


class Woken(SelectorPoller):
    """A selector with the wake-up descriptor that an intake would give it."""

    def __init__(self):
        self.wakeup = Wakeup()
        super().__init__(selectors.PollSelector(), self.wakeup.wake)
        self.watch(self.wakeup.fileno(), self.wakeup)

    def poll(self, timeout):
        things = super().poll(timeout)
        if self.wakeup in things:
            things.remove(self.wakeup)
            self.wakeup.clear()
            things += super().poll(0)
        return things

    def close(self):
        super().close()
        self.wakeup.close()


@pytest.fixture(params=[EpollPoller, Woken], ids=["epoll", "selector"])
def poller(request):
    made = request.param()
    yield made
    made.close()
    made.close()


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_watched_descriptor_is_reported_as_long_as_it_is_readable(poller, pair):
    poller.watch(pair[0].fileno(), "thing")
    assert poller.poll(0) == []
    pair[1].send(b"x")
    assert poller.poll(1) == poller.poll(1) == ["thing"]
    poller.forget(pair[0].fileno())
    assert poller.poll(0) == []


def test_an_armed_descriptor_is_reported_once_and_again_when_armed_anew(poller, pair):
    poller.arm(pair[0].fileno(), "first")
    pair[1].send(b"x")
    assert poller.poll(1) == ["first"]
    assert poller.poll(0) == []
    poller.arm(pair[0].fileno(), "second")
    assert poller.poll(1) == ["second"]


def test_what_is_readable_before_it_is_armed_is_reported_too(poller, pair):
    pair[1].send(b"x")
    poller.arm(pair[0].fileno(), "thing")
    assert poller.poll(1) == ["thing"]


def test_a_forgotten_descriptor_is_not_reported(poller, pair):
    poller.arm(pair[0].fileno(), "thing")
    pair[1].send(b"x")
    poller.forget(pair[0].fileno())
    assert poller.poll(0) == []
    poller.forget(pair[0].fileno())
    poller.forget(12345)


def test_the_end_of_a_peer_is_readable(poller, pair):
    poller.arm(pair[0].fileno(), "thing")
    pair[1].close()
    assert poller.poll(1) == ["thing"]


def test_another_thread_may_arm_while_one_waits(poller, pair):
    pair[1].send(b"x")
    arming = threading.Timer(0, poller.arm, (pair[0].fileno(), "thing"))
    arming.start()
    while not (things := poller.poll(5)):
        pass
    arming.join()
    assert things == ["thing"]


def test_a_number_that_became_another_socket_is_armed_as_that(poller):
    for round_ in range(3):
        ends = socket.socketpair()
        poller.arm(ends[0].fileno(), round_)
        ends[1].send(b"x")
        assert poller.poll(1) == [round_]
        poller.forget(ends[0].fileno())
        for end in ends:
            end.close()


def test_a_number_closed_without_notice_is_no_obstacle(poller):
    first = socket.socketpair()
    number = first[0].fileno()
    poller.arm(number, "gone")
    for end in first:
        end.close()
    second = socket.socketpair()
    try:
        assert second[0].fileno() == number
        poller.arm(number, "new")
        second[1].send(b"x")
        assert poller.poll(1) == ["new"]
        poller.forget(number)
    finally:
        for end in second:
            end.close()


def test_what_nobody_armed_again_is_silent_while_it_stays_readable_or_its_peer_has_gone(poller, pair):
    poller.arm(pair[0].fileno(), "thing")
    pair[1].send(b"x")
    assert poller.poll(1) == ["thing"]
    pair[1].close()
    for _ in range(3):
        assert poller.poll(0.01) == []
    begin = time.monotonic()
    assert poller.poll(0.1) == []
    assert time.monotonic() - begin > 0.09, "it polls without rest"
    poller.arm(pair[0].fileno(), "thing")
    assert poller.poll(1) == ["thing"]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
def test_a_number_that_somebody_who_was_late_has_registered_is_no_obstacle(pair):
    ours, theirs = pair
    poller = EpollPoller()
    poller._epoll.register(theirs.fileno(), select.EPOLLIN)  # as a thread does whose own was forgotten while it armed it
    poller.arm(theirs.fileno(), "mine")
    ours.send(b"x")
    assert poller.poll(10) == ["mine"]
    poller.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
def test_a_report_that_is_out_of_date_is_not_believed(pair):
    class Late:
        """Between the kernel's report and the look at it, somebody else reads what it was about and arms the descriptor again."""

        def __init__(self, poller):
            self.poller, self.epoll = poller, poller._epoll

        def __getattr__(self, name):
            return getattr(self.epoll, name)

        def poll(self, timeout):
            events = self.epoll.poll(timeout)
            assert events
            self.poller._epoll = self.epoll
            assert pair[0].recv(1) == b"x"
            self.poller.arm(pair[0].fileno(), "thing")
            return events

    poller = EpollPoller()
    poller.arm(pair[0].fileno(), "thing")
    pair[1].send(b"x")
    assert poller.poll(1) == ["thing"]  # and whoever serves it takes its time
    poller._epoll = Late(poller)
    assert poller.poll(1) == []
    assert poller.poll(0) == []
    pair[1].send(b"y")
    assert poller.poll(1) == ["thing"]
    poller.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_arming_while_another_thread_silences_is_never_lost(pair, moment):
    class Interrupting:
        """Arms the descriptor within `_silence`, just before or just after the kernel is told."""

        def __init__(self, poller):
            self.poller, self.epoll = poller, poller._epoll

        def __getattr__(self, name):
            return getattr(self.epoll, name)

        def modify(self, fileno, events):
            self.poller._epoll = self.epoll
            if moment == "before":
                self.poller.arm(fileno, "thing")
            self.epoll.modify(fileno, events)
            if moment == "after":
                self.poller.arm(fileno, "thing")

    poller = EpollPoller()
    poller.arm(pair[0].fileno(), "thing")
    pair[1].send(b"x")
    assert poller.poll(1) == ["thing"]
    poller._epoll = Interrupting(poller)
    assert poller.poll(0) == []
    assert type(poller._epoll) is not Interrupting, "it was not silenced"
    assert poller.poll(1) == ["thing"]
    poller.close()


def test_a_number_that_is_another_ones_by_now_is_not_forgotten_for_the_first(poller, pair):
    poller.arm(pair[0].fileno(), "first")
    poller.forget(pair[0].fileno(), "first")
    poller.arm(pair[0].fileno(), "second")
    poller.forget(pair[0].fileno(), "first")
    pair[1].send(b"x")
    assert poller.poll(1) == ["second"]


def stale(poller, thing="gone", *, forgotten=True):
    """Have a socket closed without notice while a copy keeps it open; return its number, the copy, and its peer, which has sent."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    poller.arm(number, thing)
    theirs.send(b"x")
    assert poller.poll(1) == [thing]
    copy = ours.dup()
    ours.close()
    if forgotten:
        poller.forget(number, thing)
    return number, copy, theirs


def is_at_rest(poller):
    begin = time.monotonic()
    assert poller.poll(0.1) == []
    return time.monotonic() - begin > 0.09


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_socket_closed_without_notice_is_not_reported_though_a_copy_keeps_it_open(poller, forgotten):
    _, copy, peer = stale(poller, forgotten=forgotten)
    with copy, peer:
        for _ in range(3):
            assert poller.poll(0.01) == []
        assert is_at_rest(poller)


def test_a_report_of_the_closed_socket_is_not_taken_for_the_one_that_has_its_number(poller):
    number, copy, peer = stale(poller)
    ours, theirs = socket.socketpair()
    with copy, peer, ours, theirs:
        assert ours.fileno() == number
        poller.arm(number, "new")
        for _ in range(3):
            assert poller.poll(0.01) == []
        assert is_at_rest(poller)
        theirs.send(b"x")
        assert poller.poll(1) == ["new"]
        poller.arm(number, "newer")
        assert poller.poll(1) == ["newer"]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
def test_a_loop_that_watches_the_poller_watches_it_still_after_a_closed_socket_was_reported(pair):
    def is_readable():
        return bool(select.select([poller.fileno()], [], [], 0)[0])

    poller = EpollPoller()
    number = poller.fileno()
    poller.watch(pair[0].fileno(), "thing")
    _, copy, peer = stale(poller)
    with copy, peer:
        assert is_readable()
        while is_readable():
            assert poller.poll(0) == []
        assert poller.fileno() == number
        pair[1].send(b"x")
        assert is_readable()
        assert poller.poll(0) == ["thing"]
    poller.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
@pytest.mark.parametrize("first", ["arm", "renew"])
@pytest.mark.parametrize("was_armed", [False, True])
def test_nothing_armed_is_lost_however_arming_and_replacing_the_epoll_interleave(pair, was_armed, first):
    def make():
        poller = EpollPoller()
        if was_armed:
            poller.arm(pair[0].fileno(), "before")
            assert poller.poll(1) == ["before"]
        return (poller,)

    def arm(poller):
        return poller.arm, pair[0].fileno(), "thing"

    def renew(poller):
        return (poller._renew,)

    pair[1].send(b"x")
    for poller, *_results in schedules(pollers, make, *((arm, renew) if first == "arm" else (renew, arm))):
        assert poller.poll(1) == ["thing"]
        poller.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
def test_the_poller_goes_on_if_no_descriptor_is_left_for_another_epoll(pair, monkeypatch):
    poller = EpollPoller()
    poller.watch(pair[0].fileno(), "thing")
    _, copy, peer = stale(poller)
    pair[1].send(b"x")
    with copy, peer, monkeypatch.context() as patched:
        patched.setattr(select, "epoll", lambda: (_ for _ in ()).throw(OSError("too many open files")))
        assert poller.poll(0) == ["thing"]
    assert poller.poll(0) == ["thing"]
    poller.close()
