"""The intake: what it hands out, how it rests, and how it is told to stop."""

import contextlib
import errno
import logging
import os
import socket
import ssl
import threading
from unittest import mock

import pytest

from socketkit._engine import accepting
from socketkit._engine import intake as loop
from socketkit._engine.accepting import ACCEPT_ERRORS, NO_ROOM, Source, verdict
from socketkit._engine.intake import Intake
from socketkit._engine.parking import NEVER
from socketkit._engine.retirement import LINGER
from socketkit._system import logs
from socketkit._system.sockets import is_readable
from socketkit._system.wakeup import Wakeup
from socketkit.testing import FakeClock


class Script(Source):
    """A source that is always readable and gives what its script says: a unit, None, or an error to raise."""

    def __init__(self, *script, once=False):
        self.reader, self.writer = socket.socketpair()
        self.writer.send(b"x")
        self.script = list(script)
        self.url = "test://script"
        self.once = once
        self.taken = 0
        self.pauses, self.resumes = [], []

    def fileno(self):
        return self.reader.fileno()

    def take(self):
        self.taken += 1
        if not self.script:
            raise BlockingIOError
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    def paused(self, error, seconds):
        self.pauses.append((error.errno, seconds))

    def resumed(self, failures):
        self.resumes.append(failures)

    def close(self):
        self.reader.close()
        self.writer.close()


@pytest.fixture
def script():
    made = []

    def make(*steps, once=False):
        made.append(Script(*steps, once=once))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def quick(monkeypatch):
    """Pauses short enough for a test, in the same proportions."""
    monkeypatch.setattr(accepting, "SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(accepting, "LONGEST_PAUSE", 0.04)


def test_units_come_in_order_and_a_none_is_passed_over(script):
    with Intake([script("first", None, "second")]) as intake:
        assert [intake.take(0), intake.take(0), intake.take(0)] == ["first", "second", None]


def test_nothing_within_the_timeout_is_none(script):
    with Intake([script()]) as intake:
        assert intake.take(0.01) is None
        assert not intake.stopped


def test_busy_listeners_take_turns(script):
    with Intake([script(*"aaa"), script(*"bbb")]) as intake:
        assert sorted(intake.take(0) for _ in range(2)) == ["a", "b"]


def test_a_listener_that_is_never_empty_starves_no_watched_descriptor(script):
    busy = script(*["unit"] * 10 * loop.UNITS_PER_WAIT)
    seen = []
    with Intake([busy]) as intake, socket.socket() as _:
        reader, writer = socket.socketpair()
        with reader, writer:
            writer.send(b"x")
            intake.watch(reader.fileno(), lambda: seen.append(reader.recv(1)))
            for _ in range(2 * loop.UNITS_PER_WAIT):
                intake.take(0)
            intake.unwatch(reader.fileno())
    assert seen == [b"x"]


def test_once_takes_one_unit_for_each_report_of_the_selector(script):
    source = script("a", "b", once=True)
    with Intake([source]) as intake:
        intake.take(0)
        assert source.taken == 1
        assert intake.take(0) == "b"


def test_stop_from_another_thread_ends_a_wait(script):
    source = script()
    with Intake([source]) as intake:
        waiting = threading.Thread(target=intake.stop)
        waiting.start()
        assert intake.take(None) is None
        waiting.join()
        assert intake.stopped


def test_a_stop_that_came_first_counts(script):
    with Intake([script("unit")]) as intake:
        intake.stop()
        assert intake.take(None) is None


def test_stop_after_close_is_harmless(script):
    intake = Intake([script()])
    intake.close()
    intake.stop()
    intake.close()


def test_a_wakeup_is_real_even_if_the_socket_class_is_not():
    with mock.patch("socket.socket"):
        wakeup = Wakeup()
    with contextlib.closing(wakeup):
        assert not is_readable(wakeup)
        wakeup.wake()
        assert is_readable(wakeup)
        wakeup.clear()
        assert not is_readable(wakeup)


def test_a_wakeup_that_is_full_is_awake():
    wakeup = Wakeup()
    for _ in range(100_000):
        wakeup.wake()
    wakeup.clear()
    with pytest.raises(BlockingIOError):
        wakeup._reader.recv(1)
    wakeup.close()


@pytest.mark.parametrize(
    "name", "ECONNABORTED EPROTO ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET ENOPROTOOPT EOPNOTSUPP EPERM".split()
)
def test_a_peers_error_costs_that_peer_only(script, name):
    source = script(*[OSError(getattr(errno, name), "gone")] * 12, "unit")
    with Intake([source]) as intake:
        assert intake.take(5) == "unit"
    assert source.pauses == []


def test_errors_of_a_handshake_are_a_peers(script):
    source = script(ssl.SSLError(1, "bad record"), TimeoutError("slow"), OSError("no errno"), "unit")
    with Intake([source]) as intake:
        assert intake.take(5) == "unit"
    assert source.pauses == []


def test_an_error_that_repeats_without_end_is_not_one_peers(script, quick):
    source = script(*[OSError(errno.ECONNABORTED, "gone")] * accepting.RETRIES_IN_A_ROW, "unit")
    with Intake([source]) as intake:
        assert intake.take(5) == "unit"
    assert len(source.pauses) == 1


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EIO"])
def test_a_shortage_makes_the_listener_rest_twice_as_long_each_time_and_unknown_errors_are_shortages(script, quick, name):
    number = getattr(errno, name)
    source = script(*[OSError(number, "short")] * 4, "unit")
    with Intake([source]) as intake:
        assert intake.take(5) == "unit"
    assert source.pauses == [(number, 0.01), (number, 0.02), (number, 0.04), (number, 0.04)]
    assert source.resumes == [4]


def test_the_pause_starts_small_again_after_a_success(script, quick):
    source = script(OSError(errno.EMFILE, "short"), "unit", OSError(errno.EMFILE, "short"), "unit")
    with Intake([source]) as intake:
        assert [intake.take(5), intake.take(5)] == ["unit", "unit"]
    assert [seconds for _, seconds in source.pauses] == [0.01, 0.01]


def test_pauses_are_logged_once_with_the_reason(script, quick, caplog):
    source = script(*[OSError(errno.EMFILE, "Too many open files")] * 5, "unit")
    with caplog.at_level(logging.WARNING, "socketkit"), Intake([source]) as intake:
        intake.take(5)
    assert logs.flush()
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text
    assert "test://script" in caplog.text


def test_other_listeners_go_on_while_one_rests(script):
    resting, busy = script(OSError(errno.EMFILE, "short"), "late"), script("a", "b", "c")
    with Intake([resting, busy]) as intake:
        assert [intake.take(0.05) for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_what_is_no_listener_any_more_is_an_error_once_and_never_a_spin(script, name):
    source = script(OSError(getattr(errno, name), "not a listener"))
    with Intake([source]) as intake:
        with pytest.raises(OSError, match="not a listener"):
            intake.take(5)
        assert intake.take(0.01) is None
    assert source.taken == 1


def test_hold_takes_nothing_and_release_goes_on(script):
    source = script("unit")
    with Intake([source]) as intake:
        intake.hold()
        assert intake.take(0.01) is None
        assert source.taken == 0
        intake.release()
        assert intake.take(5) == "unit"


def test_release_leaves_a_resting_listener_to_its_rest_and_does_not_forget_it(script, quick):
    source = script(OSError(errno.EMFILE, "short"), "unit")
    with Intake([source]) as intake:
        assert intake.take(0) is None
        intake.hold()
        assert intake.take(0.03) is None  # its rest ends while the loop is held
        intake.release()
        assert intake.take(5) == "unit"


def test_an_intake_leaves_alone_what_is_not_its_own(script):
    source = script("unit")
    source.close()
    with Intake([]) as intake:
        intake.accepting.resume(NO_ROOM, [source])  # as a request of a run that drains makes room, once the listeners are closed
        assert intake.take(0) is None
    assert source.taken == 0


def test_timers_fire_in_order_and_due_tells_when(script):
    fired = []
    with Intake([script()]) as intake:
        assert intake.due() is None
        intake.call_later(0.02, lambda: fired.append("late"))
        intake.call_later(0.0, lambda: fired.append("early"))
        assert intake.due() == 0.0
        assert intake.take(0.04) is None
        assert fired == ["early", "late"]
        assert intake.due() is None


def test_the_selectors_own_descriptor_becomes_readable_with_work(script):
    source = script("unit")
    source.reader.recv(1)
    with Intake([source]) as intake:
        with pytest.raises(BlockingIOError):
            _readable(intake)
        source.writer.send(b"x")
        _readable(intake)


def _readable(intake):
    import select

    if not select.select([intake.fileno()], [], [], 0)[0]:
        raise BlockingIOError


def test_an_intake_leaves_no_descriptor_behind(script):
    source = script()
    before = set(os.listdir("/proc/self/fd"))
    Intake([source]).close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_table_has_a_verdict_for_each_error_that_accept_documents():
    documented = "ECONNABORTED EINTR EMFILE ENFILE ENOBUFS ENOMEM EBADF EINVAL ENOTSOCK EOPNOTSUPP EPERM EPROTO".split()
    assert {getattr(errno, name) for name in documented} <= set(ACCEPT_ERRORS)
    assert verdict(OSError(errno.EIO, "unheard of")) == "pause"


class Guest:
    """What is parked: before its first byte, or between two requests of a conversation."""

    expired = False
    parked_at = deadline = noted = NEVER

    def __init__(self, sock, *, begun):
        self.fileno = sock.fileno
        self.begun = begun


def test_an_intake_that_retires_hands_out_who_waits_for_a_first_byte_and_then_stops(script):
    source, (ours, theirs) = script("taken", "left"), socket.socketpair()
    with ours, theirs, Intake([source]) as intake:
        early, idle, woken = Guest(ours, begun=False), Guest(theirs, begun=True), Guest(ours, begun=True)
        assert intake.take(0) == "taken"
        intake.park(early, 60)
        intake.park(idle, 60)
        intake.again(woken)
        intake.retire()
        assert [intake.take(), intake.take(), intake.take()] == [early, woken, None]
        assert intake.stopped
        assert source.script == ["left"]
        assert intake.parked() == [idle]


def test_an_intake_that_retires_waits_for_who_is_parked_as_long_as_it_was_told(script):
    (ours, theirs), clock = socket.socketpair(), FakeClock()
    with ours, theirs, Intake([], clock=clock) as intake:
        idle = Guest(theirs, begun=True)
        intake.park(idle, 60)
        intake.retire(1.0)
        assert intake.take(0) is None
        assert not intake.stopped
        ours.send(b"x")
        assert intake.take() is idle
        clock.advance(LINGER)
        assert intake.take() is None
        assert intake.stopped


def test_an_intake_that_retires_waits_for_who_is_about_to_be_parked():
    (ours, theirs), clock, coming = socket.socketpair(), FakeClock(), [True, True, False, False]
    with ours, theirs, Intake([], clock=clock) as intake:
        late = Guest(theirs, begun=True)
        intake.retire(1.0, lambda: coming.pop(0))
        for _ in range(2):
            assert intake.take(0) is None
            assert not intake.stopped
            clock.advance(LINGER)
        intake.park(late, 60)
        assert intake.take(0) is None
        ours.send(b"x")
        assert intake.take() is late
        clock.advance(LINGER)
        assert intake.take() is None
        assert intake.stopped
        assert not coming


def test_who_parks_once_all_was_taken_out_is_told_so():
    ours, theirs = socket.socketpair()
    with ours, theirs, Intake([]) as intake:
        early, late = Guest(ours, begun=True), Guest(theirs, begun=True)
        intake.stop()
        assert intake.park(early, 60)
        assert intake.again(early)
        assert (intake.parked(), intake.units.empty()) == ([early], [early])
        assert not intake.park(late, 60)
        assert not intake.again(late)
        assert (intake.parked(), intake.units.empty()) == ([], [])


def test_who_parks_in_one_that_is_stopped_and_closed_is_found_there():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        intake, guest = Intake([]), Guest(ours, begun=True)
        intake.stop()
        intake.close()
        assert intake.park(guest, 60)
        assert intake.parked() == [guest]


def test_who_parks_in_one_that_is_emptied_and_closed_is_told_so():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        intake, guest = Intake([]), Guest(ours, begun=False)
        assert intake.parked() == []
        intake.close()
        assert not intake.park(guest, 60)
        assert intake.parked() == []


def test_a_dispatcher_that_has_room_again_does_not_undo_a_retirement(script):
    source = script("left")
    with Intake([source]) as intake:
        intake.hold()
        intake.retire()
        intake.call_soon(intake.release)
        assert intake.take() is None
        assert source.script == ["left"]


def test_what_is_to_be_called_soon_is_called_by_whoever_takes_and_before_anything_is_taken(script):
    order = []
    with Intake([script()]) as intake:
        taker = threading.Thread(target=lambda: order.append(intake.take()))
        taker.start()
        intake.call_soon(lambda: order.append(threading.current_thread() is taker))
        intake.call_soon(intake.stop)
        taker.join(5)
    assert order == [True, None]
