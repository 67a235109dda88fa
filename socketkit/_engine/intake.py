"""The core of the serving loop: wait on descriptors, take one unit of work, stop on request.

It knows nothing about servers, handlers or threads.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable

from socketkit._engine.accepting import HELD, NO_ROOM, Accepting, NoRoomError, Source
from socketkit._engine.housekeeping import Housekeeping
from socketkit._engine.parking import Parked, ParkingLot
from socketkit._engine.poller import Poller, SelectorPoller, best_poller
from socketkit._engine.retirement import Retirement
from socketkit._engine.units import Units
from socketkit._system.timer import NEVER, Appointments
from socketkit._system.wakeup import Wakeup

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any, Self

    from socketkit.seams import Clock, Unit

UNITS_PER_WAIT = 64
"""Units taken between two polls, so that a busy listener cannot starve the others."""


class _Watch:
    """The callback of a watched descriptor."""

    __slots__ = ("readable",)

    def __init__(self, readable: Callable[[], None]) -> None:
        self.readable = readable


class Intake:
    """Waits on sources, watched descriptors, timers and a wake-up descriptor; hands out one unit at a time.

    Only one thread may use it at a time, in the process that created it, except for the methods documented as callable from any thread.
    Owner: its creator; `close()` closes the selector and the wake-up descriptor, never a source.
    """

    def __init__(self, sources: Iterable[Source], selector: selectors.BaseSelector | None = None, clock: Clock = time.monotonic) -> None:
        self.stopped = False
        self.ending = False  # it hands out what was already accepted, then stops: no unit should wait for more input
        self.lame = False  # `ending` will be set soon: handlers that can warn their client should
        self.emptied = False  # all waiting units were removed, for the next run
        self.clock = clock
        self._wakeup = Wakeup()
        self._poller: Poller = best_poller(self.wake) if selector is None else SelectorPoller(selector, self.wake)
        self.lot = ParkingLot(self._poller, clock)
        self.units = Units()
        self._polling = False
        self._interrupted = False
        self.parked_one: Callable[[], None] | None = None  # called once, when a unit is parked
        self.housekeeping: Housekeeping | None = None  # the server's periodic work, if it has any
        self._soon: deque[Callable[[], None]] = deque()  # callbacks that `take` runs before anything else
        self._on_stop: list[Callable[[], None]] = []
        self._taken = 0  # units since the last poll
        self._timers = Appointments()
        try:
            self.watch(self._wakeup.fileno(), self._wakeup.clear)
            self.accepting = Accepting(sources, self._poller, self.call_later)
            for source in self.accepting.sources:
                source.intake = self
            if hasattr(clock, "follow"):
                clock.follow(self.wake)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # the interface of a driving dispatcher: `socketkit.seams.Intake`

    def take(self, timeout: float | None = None) -> Unit | None:  # noqa: C901, PLR0912 - the hot path, in one piece
        """Return the next unit; None when stopped, interrupted, or after `timeout` seconds without one (None: wait for ever).

        Raises: OSError when a source's descriptor is no longer a listener.
        """
        deadline = None if timeout is None else self.clock() + timeout
        waited = False
        accepting, woken, turns = self.accepting, self.units.woken, self.units.turns
        ready = accepting.ready
        while not self.stopped:
            if woken:
                return woken.popleft()  # type: ignore[no-any-return]
            if self._soon:
                self._soon.popleft()()
                continue
            if self._interrupted:
                self._interrupted = False
                return None
            while ready and self._taken < UNITS_PER_WAIT:
                source = ready[0]
                self._taken += 1
                try:
                    unit = source.take()
                except NoRoomError as error:
                    accepting.pause(NO_ROOM, error.sources)
                except BlockingIOError:
                    ready.popleft()
                except OSError as error:
                    ready.popleft()
                    accepting.failed(source, error)
                else:
                    if source.troubled:
                        accepting.recovered(source)
                    if source.once:
                        ready.popleft()
                    elif len(ready) > 1:
                        ready.rotate(-1)
                    if unit is not None:
                        return unit
            if turns:
                return turns.popleft()  # type: ignore[no-any-return]
            if deadline is None:
                self._wait(None)
                continue
            left = deadline - self.clock()
            if left <= 0 and waited:
                return None
            self._wait(max(left, 0.0) if waited else timeout)
            waited = True
        return None

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `take(0)` might return a unit; only epoll and kqueue have one."""
        return self._poller.fileno()

    def due(self) -> float | None:
        """Return the seconds until `take` has work that no descriptor announces, such as a timer; None when there is none."""
        units = self.units
        if units.woken or self.accepting.ready or units.turns or units.later:
            return 0.0
        moment = self._due()
        return None if moment is None else max(moment - self.clock(), 0.0)

    def housekeep(self) -> float | None:
        """Do the server's periodic work if it is due: see `socketkit.seams.Intake`."""
        return None if self.housekeeping is None else self.housekeeping()

    def park(self, unit: Parked, seconds: float | None) -> bool:
        """Park the unit: `take` returns it when its descriptor is readable, or after `seconds` (None: no limit). From any thread.

        Once the intake is stopped, the unit stays parked until `parked` removes it. Returns False if `parked` has already run.
        Raises: OSError, ValueError when the unit's descriptor is closed.
        """
        try:
            is_next = self.lot.park(unit, seconds)
        except (OSError, ValueError):
            if not (self.stopped or self.emptied):
                raise
            is_next = False  # the intake is closed, or about to be, but the unit is in the lot
        if self.emptied and self.lot.leave(unit):
            return False
        if is_next and self._polling:
            self.wake()  # the polling thread does not know this deadline yet
        parked_one = self.parked_one
        if parked_one is not None:
            self.parked_one = None
            parked_one()
        return True

    def again(self, unit: Parked) -> bool:
        """Queue the unit behind everything else that is ready. From any thread. Returns False in the same case as `park`."""
        taken = self.units.again(unit)
        if taken and self._polling:
            self.wake()
        return taken

    def forget(self, unit: Parked) -> None:
        """Stop watching the unit, whose descriptor is about to be closed. From any thread."""
        self._poller.forget(unit.fileno(), unit)
        self.lot.drop(unit)

    def parked(self) -> list[Any]:
        """Remove and return all parked units; for the end of a run."""
        self.emptied = True  # set before emptying: `park` adds its unit before it reads this
        return self.lot.empty()

    # for the serving thread

    def woken_by_signals(self) -> contextlib.AbstractContextManager[None]:
        """Let signals interrupt `take` inside this block: see `Wakeup.woken_by_signals`."""
        return self._wakeup.woken_by_signals()

    def watch(self, fileno: int, readable: Callable[[], None]) -> None:
        """Call `readable` from within `take` whenever the descriptor is readable."""
        self._poller.watch(fileno, _Watch(readable))

    def unwatch(self, fileno: int) -> None:
        """Stop watching the descriptor; call this before closing it."""
        self._poller.forget(fileno)

    def hold(self) -> None:
        """Stop taking from the sources until `release`; new requests wait in the kernel."""
        self.accepting.pause(HELD)

    def release(self) -> None:
        """Undo `hold`. A source that is paused for another reason stays paused."""
        self.accepting.resume(HELD)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` once from within `take`, after `seconds`."""
        self._timers.add(self.clock() + seconds, callback)

    def close(self) -> None:
        """Close the selector and the wake-up descriptor. May be called twice."""
        self._poller.close()
        self._wakeup.close()

    # from any thread, and from signal handlers

    def stop(self) -> None:
        """Make the current `take` and all later ones return None."""
        self.stopped = self.ending = True
        self._wakeup.wake()
        for callback in self._on_stop.copy():  # `on_stop` calls what it adds from now on
            callback()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` from within `take`, before anything new is taken."""
        self._soon.append(callback)
        self._wakeup.wake()

    def retire(self, grace: float = 0.0, coming: Callable[[], bool] = lambda: False) -> None:
        """Take nothing new, hand out what was already accepted, then stop.

        grace: seconds that parked units may still wait. After that, those that have not begun are handed out too.
        coming: returns whether more units are likely to be parked here.
        """
        self.ending = True
        self.call_soon(Retirement(self, self.clock() + grace, coming).go_on)

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Have `stop` call `callback` too, in its own thread or signal handler, so it must be as safe as `Wakeup.wake`."""
        self._on_stop.append(callback)
        if self.stopped:
            callback()

    def interrupt(self) -> None:
        """Make one `take`, the current or the next, return None without stopping the intake."""
        self._interrupted = True
        self._wakeup.wake()

    def wake(self) -> None:
        """Make a waiting `take` check for work again."""
        self._wakeup.wake()

    # inside

    def _wait(self, timeout: float | None) -> None:  # noqa: C901 - the hot path, in one piece
        """Wait for a descriptor or a timer, and record which sources are ready."""
        if self.stopped:  # perhaps while a source took a request, and by now it is closed
            return
        self._polling = True  # set before the deadlines are read: a later deadline wakes the poller
        units = self.units
        if units.woken or units.later or self._interrupted:
            timeout = 0.0
        moment = self._due()
        if moment is not None:
            due = max(moment - self.clock(), 0.0)
            timeout = due if timeout is None else min(due, timeout)
        self._taken = 0
        ready = self.accepting.ready
        ready.clear()  # the poller reports them again if they still are
        things = self._poller.poll(timeout)
        self._polling = False
        for thing in things:
            if isinstance(thing, Source):
                ready.append(thing)
            elif type(thing) is _Watch:
                thing.readable()
            elif self.lot.leave(thing):
                units.woken.append(thing)
        if units.later:
            units.have_polled()
        if moment is not None:
            now = self.clock()
            if now >= moment:
                self._keep_time(now)

    def _due(self) -> float | None:
        """Return the time of the next timer or deadline, by the clock; None when there is none."""
        parked = self.lot.due()
        moment = self._timers.next if parked is None else min(parked, self._timers.next)
        return None if moment == NEVER else moment

    def _keep_time(self, now: float) -> None:
        self.units.woken.extend(self.lot.expire(now))
        while (callback := self._timers.pop(now)) is not None:
            callback()
