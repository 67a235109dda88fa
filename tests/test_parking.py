"""The parking lot: everyone leaves exactly once, in time, at a cost that does not grow."""

import time

import pytest

from socketkit.parking import FINE, GRAIN, Lot


class Car:
    def __init__(self, number=0):
        self.number = number
        self.deadline, self.expired = 0.0, False

    def fileno(self):
        return self.number


class Nothing:
    """A poller that is never ready."""

    def __init__(self):
        self.armed = {}

    def arm(self, fileno, thing):
        self.armed[fileno] = thing

    def forget(self, fileno, thing=None):
        self.armed.pop(fileno, None)


@pytest.fixture
def lot():
    return Lot(Nothing())


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_who_leaves_has_left_once(lot):
    car = Car()
    lot.park(car, None)
    assert lot.leave(car)
    assert not lot.leave(car)
    assert lot.due() is None


def test_short_waits_expire_exactly_and_in_order(lot, clock):
    first, second = Car(1), Car(2)
    lot.park(first, 0.01)
    clock.now += 0.005
    lot.park(second, 0.01)
    assert lot.due() == 1000.01
    assert lot.expire(1000.0099) == []
    assert lot.expire(1000.01) == [first]
    assert lot.expire(1000.015) == [second]
    assert first.expired
    assert second.expired


@pytest.mark.parametrize("seconds", [FINE + 0.01, 5.0, 75.0])
def test_long_waits_expire_not_early_and_hardly_late(lot, clock, seconds):
    car = Car()
    lot.park(car, seconds)
    assert lot.expire(clock.now + seconds - 1e-6) == []
    due = lot.due()
    assert clock.now + seconds <= due <= clock.now + seconds + GRAIN + 1e-6
    assert lot.expire(due) == [car]


def test_who_came_back_is_given_its_new_time(lot, clock):
    for seconds in (0.01, 5.0):
        car = Car()
        lot.park(car, seconds)
        lot.leave(car)
        clock.now += seconds / 2
        lot.park(car, seconds)
        assert lot.expire(clock.now + seconds / 2) == []
        assert lot.expire(clock.now + seconds + GRAIN) == [car]


def test_who_left_does_not_expire(lot, clock):
    for seconds in (0.01, 5.0):
        car = Car()
        lot.park(car, seconds)
        lot.leave(car)
        assert lot.expire(clock.now + seconds + GRAIN) == []
        assert not car.expired


def test_only_the_next_deadline_wakes_the_poller(lot, clock):
    assert lot.park(Car(1), 5.0) is True
    assert lot.park(Car(2), 50.0) is False
    assert lot.park(Car(3), 0.01) is True
    assert lot.park(Car(4), 0.01) is False
    assert lot.park(Car(5), None) is False


def test_emptying_takes_out_everyone_and_forgets_their_descriptors(lot):
    cars = [Car(number) for number in range(5)]
    for car, seconds in zip(cars, (None, 0.01, 0.01, 5.0, 75.0), strict=True):
        lot.park(car, seconds)
    assert set(lot.empty()) == set(cars)
    assert lot._poller.armed == {}
    assert lot.due() is None
    assert lot.empty() == []


def test_a_busy_conversation_leaves_nothing_behind_for_its_idle_time(lot, clock):
    car = Car()
    for _ in range(10_000):
        lot.park(car, 75.0)
        lot.leave(car)
        clock.now += 0.001
    assert len(lot._order) <= 10_000 * 0.001 / GRAIN + 2
    assert sum(map(len, lot._later.values())) == 0
