"""The parking lot: everyone leaves exactly once, in time, at a cost that does not grow."""

import socket
import threading
import weakref

import pytest

from helpers.interleaving import schedules
from socketkit._engine import parking
from socketkit._engine.intake import Intake
from socketkit._engine.parking import FINE, FINE_GRAIN, GRAIN, ParkingLot


class Car:
    def __init__(self, number=0):
        self.number = number
        self.deadline = self.noted = parking.NEVER
        self.begun = self.expired = False

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
def lot(clock):
    return ParkingLot(Nothing(), clock)


@pytest.fixture
def clock():
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


def test_who_leaves_has_left_once(lot):
    car = Car()
    lot.park(car, None)
    assert lot.leave(car)
    assert not lot.leave(car)
    assert lot.due() is None


def test_waits_expire_in_order(lot, clock):
    first, second = Car(1), Car(2)
    lot.park(first, 0.01)
    clock.now += 0.005
    lot.park(second, 0.01)
    assert lot.expire(1000.0099) == []
    assert lot.expire(1000.0115) == [first]
    assert lot.expire(1000.0165) == [second]
    assert first.expired
    assert second.expired


@pytest.mark.parametrize(("seconds", "grain"), [(0.01, FINE_GRAIN), (FINE, FINE_GRAIN), (FINE + 0.01, GRAIN), (5.0, GRAIN), (75.0, GRAIN)])
def test_waits_expire_not_early_and_hardly_late(lot, clock, seconds, grain):
    car = Car()
    lot.park(car, seconds)
    assert lot.expire(clock.now + seconds - 1e-6) == []
    due = lot.due()
    assert clock.now + seconds <= due <= clock.now + seconds + grain + 1e-6
    assert lot.expire(due) == [car]


def test_of_those_whose_time_is_up_at_once_who_came_first_is_first(lot, clock):
    cars = [Car(number) for number in range(50)]
    for car in cars:
        lot.park(car, 0.01)
    assert lot.expire(clock.now + 1.0) == cars


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


def test_only_a_deadline_before_the_one_that_was_asked_for_wakes_the_poller(lot, clock):
    for number, (seconds, wakes) in enumerate(((5.0, True), (50.0, False), (5.0, False), (0.01, True), (0.01, False), (None, False))):
        assert lot.park(Car(number), seconds) is wakes
        lot.due()


def test_deadlines_of_those_who_never_come_again_wake_nobody(lot, clock):
    stays, cars = Car(), [Car(number) for number in range(1, 100)]
    lot.park(stays, 500.0)
    for number, car in enumerate(cars):
        lot.park(car, (0.01, 75.0, 5.0)[number % 3])
        clock.now += GRAIN
        lot.due()
    for car in cars:
        lot.leave(car)
        lot.drop(car)
    due = lot.due()
    assert 1500.0 <= due <= 1500.0 + GRAIN + 1e-6
    assert lot.expire(due) == [stays]
    assert lot.due() is None


def test_a_deadline_is_noticed_by_a_poller_that_waits_although_earlier_ones_have_gone():
    taken = []
    with Intake([]) as intake, socket.socket(type=socket.SOCK_DGRAM) as one:
        gone, late = Car(one.fileno()), Car(one.fileno())
        intake.park(gone, 0.05)
        assert intake.due() > 0
        assert intake.lot.leave(gone)
        intake.forget(gone)
        thread = threading.Thread(target=lambda: taken.append(intake.take(10)))
        thread.start()
        while not intake._polling:
            pass
        intake.park(late, 0.1)
        thread.join()
    assert taken == [late]
    assert late.expired


def test_emptying_takes_out_everyone_and_forgets_their_descriptors(lot):
    cars = [Car(number) for number in range(5)]
    for car, seconds in zip(cars, (None, 0.01, 0.01, 5.0, 75.0), strict=True):
        lot.park(car, seconds)
    assert set(lot.empty()) == set(cars)
    assert lot._poller.armed == {}
    assert lot.due() is None
    assert lot.empty() == []


def test_a_busy_conversation_is_noted_once_in_its_idle_time(lot, clock):
    car = Car()
    for _ in range(10_000):
        lot.park(car, 75.0)
        lot.due()
        lot.leave(car)
        clock.now += 0.001
    assert len(lot._order) == sum(map(len, lot._noted.values())) == 1
    lot.park(car, 75.0)
    assert lot.expire(lot.due()) == []
    assert clock.now + 75.0 <= lot.due() <= clock.now + 75.0 + GRAIN + 1e-6


def test_who_left_for_good_is_not_kept(lot):
    car = Car()
    lot.park(car, 75.0)
    lot.due()
    lot.leave(car)
    lot.drop(car)
    lot._poller.forget(car.fileno(), car)
    gone = weakref.ref(car)
    del car
    assert gone() is None


def test_a_shorter_time_counts_although_a_longer_one_is_noted(lot, clock):
    car = Car()
    lot.park(car, 75.0)
    lot.due()
    lot.leave(car)
    lot.park(car, 5.0)
    assert clock.now + 5.0 <= lot.due() <= clock.now + 5.0 + GRAIN + 1e-6
    assert lot.expire(lot.due()) == [car]
    assert lot.due() is None


def test_who_may_wait_for_ever_by_now_stays_when_an_earlier_deadline_is_over(lot, clock):
    car = Car()
    lot.park(car, 5.0)
    assert lot.due()
    lot.leave(car)
    lot.park(car, None)
    assert lot.expire(clock.now + 10.0) == []
    assert lot.due() is None
    lot.leave(car)
    lot.park(car, 5.0)
    assert lot.expire(lot.due()) == [car]


def emptied(lot, *, seconds):
    """Leave a moment behind for which nobody is noted any more."""
    car = Car(99)
    lot.park(car, seconds)
    lot.due()
    lot.leave(car)
    lot.drop(car)


BEFORE = {
    "nobody": lambda lot: None,
    "an emptied moment": lambda lot: emptied(lot, seconds=5.0),
    "the same moment, emptied": lambda lot: emptied(lot, seconds=75.0),
    "an earlier one": lambda lot: lot.park(Car(98), 10.0),
    "a later one": lambda lot: lot.park(Car(97), 100.0),
}


@pytest.mark.parametrize("seconds", [0.5, 75.0], ids=["soon", "late"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("first", ["park", "due"])
def test_no_deadline_is_slept_through_however_parking_and_polling_interleave(before, seconds, first, clock):
    def make():
        lot = ParkingLot(Nothing(), clock)
        BEFORE[before](lot)
        lot.due()
        BEFORE[before](lot)
        return lot, Car(1)

    def park(lot, car):
        return lot.park, car, seconds

    def due(lot, _car):
        return (lot.due,)

    count = 0
    for lot, car, *results in schedules(parking, make, *((park, due) if first == "park" else (due, park))):
        told, moment = results if first == "park" else results[::-1]
        latest = clock.now + seconds + GRAIN + 1e-6
        assert told or (moment is not None and moment <= latest)
        assert lot.due() <= latest
        while not lot.expire(lot.due()).count(car):
            pass
        count += 1
    assert count > 50


@pytest.mark.parametrize("first", ["park", "expire"])
def test_no_deadline_is_lost_when_a_connection_comes_back_just_as_its_first_one_is_over(first, clock):
    begin = clock.now

    def make():
        clock.now = begin
        lot, car = ParkingLot(Nothing(), clock), Car(1)
        lot.park(car, 5.0)
        lot.due()
        lot.leave(car)
        clock.now = lot.due()
        return lot, car

    def park(lot, car):
        return lot.park, car, 75.0

    def expire(lot, _car):
        return lot.expire, clock.now

    count = 0
    for lot, car, *_results in schedules(parking, make, *((park, expire) if first == "park" else (expire, park))):
        assert not car.expired
        due = lot.due()
        assert clock.now + 75.0 <= due <= clock.now + 75.0 + GRAIN + 1e-6
        assert lot.expire(due) == [car]
        assert lot.due() is None
        count += 1
    assert count > 50
