"""The core of the serving loop: wait on descriptors, take one unit of work, stop on request.

It knows nothing about servers, handlers or threads.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Self

from socketkit._engine.accepting import HELD, NO_ROOM, Accepting, NoRoomError, Source
from socketkit._engine.parking import Parked, ParkingLot
from socketkit._engine.poller import Poller, SelectorPoller, best_poller
from socketkit._system.wakeup import Wakeup
from socketkit.seams import Clock, Unit

LINGER = 0.01
"""Seconds between a retiring intake's checks for anything left to wait for."""

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
        self._clock = clock
        self._wakeup = Wakeup()
        self._poller: Poller = best_poller(self.wake) if selector is None else SelectorPoller(selector, self.wake)
        self._lot = ParkingLot(self._poller, clock)
        self._woken: deque[Any] = deque()  # units whose wait is over
        self._later: deque[Any] = deque()  # units that have used up their share, until the next poll
        self._turns: deque[Any] = deque()  # the same units after that poll
        self._polling = False
        self._interrupted = False
        self._retiring = False
        self.parked_one: Callable[[], None] | None = None  # called once, when a unit is parked
        self._soon: deque[Callable[[], None]] = deque()  # callbacks that `take` runs before anything else
        self._on_stop: list[Callable[[], None]] = []
        self._units = 0  # taken since the last poll
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()  # breaks ties between timers, so that callbacks are never compared
        try:
            self.watch(self._wakeup.fileno(), self._wakeup.clear)
            self._accepting = Accepting(sources, self._poller, self.call_later)
            for source in self._accepting.sources:
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
        deadline = None if timeout is None else self._clock() + timeout
        waited = False
        accepting, woken = self._accepting, self._woken
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
            while ready and self._units < UNITS_PER_WAIT:
                source = ready[0]
                self._units += 1
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
            if self._turns:
                return self._turns.popleft()  # type: ignore[no-any-return]
            if deadline is None:
                self._wait(None)
                continue
            left = deadline - self._clock()
            if left <= 0 and waited:
                return None
            self._wait(max(left, 0.0) if waited else timeout)
            waited = True
        return None

    def fileno(self) -> int:
        """Return the descriptor of the selector itself; only epoll and kqueue have one."""
        return self._poller.fileno()

    def due(self) -> float | None:
        """Return the seconds until `take` has work that no descriptor announces, such as a timer; None when there is none."""
        if self._woken or self._accepting.ready or self._turns or self._later:
            return 0.0
        moment = self._due()
        return None if moment is None else max(moment - self._clock(), 0.0)

    def park(self, unit: Parked, seconds: float | None) -> bool:
        """Park the unit: `take` returns it when its descriptor is readable, or after `seconds` (None: no limit). From any thread.

        Once the intake is stopped, the unit stays parked until `parked` removes it. Returns False if `parked` has already run.
        Raises: OSError, ValueError when the unit's descriptor is closed.
        """
        try:
            is_next = self._lot.park(unit, seconds)
        except (OSError, ValueError):
            if not self.stopped:
                raise
            is_next = False  # the intake is closed, but the unit is in the lot
        if self.emptied and self._lot.leave(unit):
            return False
        if is_next and self._polling:
            self.wake()  # the polling thread does not know this deadline yet
        parked_one = self.parked_one
        if parked_one is not None:
            self.parked_one = None
            parked_one()
        return True

    def longest(self) -> Any | None:
        """Remove and return the unit that has been parked longest, of those that have begun; None if there is none."""
        return self._lot.longest()

    def again(self, unit: Parked) -> bool:
        """Queue the unit behind everything else that is ready. From any thread. Returns False in the same case as `park`."""
        self._later.append(unit)
        if self.emptied:
            try:
                self._later.remove(unit)
            except ValueError:
                return True  # `waiting` removed it with the rest
            return False
        if self._polling:
            self.wake()
        return True

    def unpark(self, unit: Parked) -> bool:
        """Remove the unit from the lot; False if it was already removed."""
        return self._lot.leave(unit)

    def forget(self, unit: Parked) -> None:
        """Stop watching the unit, whose descriptor is about to be closed. From any thread."""
        self._poller.forget(unit.fileno(), unit)
        self._lot.drop(unit)

    def parked(self) -> list[Any]:
        """Remove and return all parked units; for the end of a run."""
        self.emptied = True  # set before emptying: `park` adds its unit before it reads this
        return self._lot.empty()

    def waiting(self) -> list[Any]:
        """Remove and return all units that are ready to continue; for the end of a run."""
        self.emptied = True
        waiting = [*self._woken, *self._turns, *self._later]
        for queue in (self._woken, self._turns, self._later):
            queue.clear()
        return waiting

    def hand_out(self, units: Iterable[Any]) -> None:
        """Have `take` return these units before anything else."""
        self._woken.extend(units)

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
        self._accepting.pause(HELD)

    def release(self) -> None:
        """Undo `hold`. A source that is paused for another reason stays paused."""
        if not self._retiring:
            self._accepting.resume(HELD)

    def resume(self, sources: Collection[Source]) -> None:
        """Resume sources that were paused for lack of room. A source that is paused for another reason stays paused."""
        self._accepting.resume(NO_ROOM, sources)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` once from within `take`, after `seconds`."""
        heapq.heappush(self._timers, (self._clock() + seconds, next(self._order), callback))

    def failed(self, source: Source, error: OSError) -> None:
        """Handle an error raised while taking from `source`, as `ACCEPT_ERRORS` says.

        Raises: the error itself, if the descriptor is no longer a listener.
        """
        self._accepting.failed(source, error)

    def close(self) -> None:
        """Close the selector and the wake-up descriptor. May be called twice."""
        self._poller.close()
        self._wakeup.close()

    # from any thread, and from signal handlers

    def stop(self) -> None:
        """Make the current `take` and all later ones return None."""
        self.stopped = self.ending = True
        self._wakeup.wake()
        for callback in self._on_stop:
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
        self.call_soon(partial(self._linger, self._clock() + grace, coming))

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

    def _linger(self, until: float, coming: Callable[[], bool]) -> None:
        left = until - self._clock()
        if left > 0 and (coming() or self._lot.parked):
            self.call_later(min(left, LINGER), partial(self._linger, until, coming))
        else:
            self._retire()

    def _retire(self) -> None:
        """Hand out everything that was accepted, then stop."""
        self._retiring = True
        self.hold()
        for unit in list(self._lot.parked):
            if not unit.begun and self.unpark(unit):  # an accepted connection gets a handler, even without a first byte
                self._poller.forget(unit.fileno(), unit)
                self._woken.append(unit)
        for queue in (self._turns, self._later):
            while queue:
                self._woken.append(queue.popleft())
        self._soon.append(self._retire if self._woken else self.stop)  # runs once `_woken` is empty

    def _wait(self, timeout: float | None) -> None:
        """Wait for a descriptor or a timer, and record which sources are ready."""
        self._polling = True  # set before the deadlines are read: a later deadline wakes the poller
        if self._woken or self._later or self.stopped or self._interrupted:
            timeout = 0.0
        moment = self._due()
        if moment is not None:
            due = max(moment - self._clock(), 0.0)
            timeout = due if timeout is None else min(due, timeout)
        self._units = 0
        ready = self._accepting.ready
        ready.clear()  # the poller reports them again if they still are
        things = self._poller.poll(timeout)
        self._polling = False
        for thing in things:
            if isinstance(thing, Source):
                ready.append(thing)
            elif type(thing) is _Watch:
                thing.readable()
            elif self._lot.leave(thing):
                self._woken.append(thing)
        while self._later:
            self._turns.append(self._later.popleft())
        if moment is not None:
            now = self._clock()
            if now >= moment:
                self._keep_time(now)

    def _due(self) -> float | None:
        """Return the time of the next timer or deadline, by the clock; None when there is none."""
        timer = self._timers[0][0] if self._timers else None
        parked = self._lot.due()
        return timer if parked is None else parked if timer is None else min(timer, parked)

    def _keep_time(self, now: float) -> None:
        self._woken.extend(self._lot.expire(now))
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
