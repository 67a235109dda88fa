"""The loop's one primitive: wait on descriptors, take one unit of work, be told to stop.

It knows nothing of servers, handlers or threads.
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
from typing import TYPE_CHECKING, Any, Self

from socketkit._engine.accepting import HELD, NO_ROOM, Accepting, NoRoomError, Source
from socketkit._engine.parking import Parked, ParkingLot
from socketkit._engine.poller import Poller, SelectorPoller, best_poller
from socketkit._system.wakeup import Wakeup

if TYPE_CHECKING:
    from socketkit.seams import Clock, Unit

LINGER = 0.01
"""Seconds after which an intake that retires looks whether anything is left to wait for."""

UNITS_PER_WAIT = 64
"""How many units are taken before the selector is asked again, so that no busy listener starves the rest."""


class _Watch:
    """What to do when a watched descriptor is readable."""

    __slots__ = ("readable",)

    def __init__(self, readable: Callable[[], None]) -> None:
        self.readable = readable


class Intake:
    """Waits on sources, watched descriptors, timers and a wake-up descriptor; hands out one unit at a time.

    Used by one thread at a time, in the process that made it; only `stop` and `wake` may be called from elsewhere.
    Owner: whoever made it; `close()` closes the selector and the wake-up descriptor, never a source.
    """

    def __init__(self, sources: Iterable[Source], selector: selectors.BaseSelector | None = None, clock: Clock = time.monotonic) -> None:
        self.stopped = False
        self.ending = False  # it hands out what was accepted, and will be stopped then: nothing shall wait for more
        self.lame = False  # it will be ending before long: whoever can tell its client shall do so
        self.emptied = False  # all that waited was taken out, for those who come after it
        self._clock = clock
        self._wakeup = Wakeup()
        self._poller: Poller = best_poller(self.wake) if selector is None else SelectorPoller(selector, self.wake)
        self._lot = ParkingLot(self._poller, clock)
        self._woken: deque[Any] = deque()  # units whose wait is over
        self._later: deque[Any] = deque()  # units that have had their share, until the poller was asked again
        self._turns: deque[Any] = deque()  # the same after that
        self._polling = False
        self._interrupted = False
        self._retiring = False
        self.parked_one: Callable[[], None] | None = None  # to be called once, when a unit is parked
        self._soon: deque[Callable[[], None]] = deque()  # what whoever takes shall do before anything else
        self._on_stop: list[Callable[[], None]] = []
        self._units = 0  # taken since the selector was last asked
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()  # so that timers for the same moment never compare callbacks
        try:
            self.watch(self._wakeup.fileno(), self._wakeup.clear)
            self._accepting = Accepting(sources, self._poller, self.call_later)
            if hasattr(clock, "follow"):
                clock.follow(self.wake)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # what a driving dispatcher sees: `socketkit.seams.Intake`

    def take(self, timeout: float | None = None) -> Unit | None:  # noqa: C901, PLR0912 - the hot path, in one piece
        """Return the next unit; None when stopped, or when nothing came within `timeout` seconds (None: for ever).

        Raises: OSError when a source's descriptor is no listener any more.
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
        """Return the descriptor of the selector itself, which epoll and kqueue have."""
        return self._poller.fileno()

    def due(self) -> float | None:
        """Return the seconds until `take` has something to do that no descriptor announces; None when there is nothing."""
        if self._woken or self._accepting.ready or self._turns or self._later:
            return 0.0
        moment = self._due()
        return None if moment is None else max(moment - self._clock(), 0.0)

    def park(self, unit: Parked, seconds: float | None) -> bool:
        """Let `take` return the unit when its descriptor is readable, or after `seconds` (None: never). From any thread.

        Once this is stopped the unit waits for whoever takes out what is left; False if that has happened already.
        Raises: OSError, ValueError when the unit's descriptor is closed.
        """
        try:
            is_next = self._lot.park(unit, seconds)
        except (OSError, ValueError):
            if not self.stopped:
                raise
            is_next = False  # this is closed, but the unit is in the lot
        if self.emptied and self._lot.leave(unit):
            return False
        if is_next and self._polling:
            self.wake()  # whoever polls has not heard of this deadline
        parked_one = self.parked_one
        if parked_one is not None:
            self.parked_one = None
            parked_one()
        return True

    def longest(self) -> Any | None:
        """Take out and return the unit that is parked longest of those that have begun; None when none is."""
        return self._lot.longest()

    def again(self, unit: Parked) -> bool:
        """Let `take` return the unit after all else that is ready. From any thread. False: as `park`."""
        self._later.append(unit)
        if self.emptied:
            try:
                self._later.remove(unit)
            except ValueError:
                return True  # it was taken out with the rest
            return False
        if self._polling:
            self.wake()
        return True

    def unpark(self, unit: Parked) -> bool:
        """Take the unit out again; False if somebody else has."""
        return self._lot.leave(unit)

    def forget(self, unit: Parked) -> None:
        """Take notice that the unit's descriptor is about to be closed. From any thread."""
        self._poller.forget(unit.fileno(), unit)
        self._lot.drop(unit)

    def parked(self) -> list[Any]:
        """Take out and return all that is parked; for the end of a run."""
        self.emptied = True  # before it is: whoever parks does it the other way round
        return self._lot.empty()

    def waiting(self) -> list[Any]:
        """Take out and return all that is about to go on; for the end of a run."""
        self.emptied = True
        waiting = [*self._woken, *self._turns, *self._later]
        for queue in (self._woken, self._turns, self._later):
            queue.clear()
        return waiting

    def hand_out(self, units: Iterable[Any]) -> None:
        """Let `take` return these before anything else."""
        self._woken.extend(units)

    # for the thread that serves

    def woken_by_signals(self) -> contextlib.AbstractContextManager[None]:
        """Let signals interrupt `take`, inside this block: see `Wakeup.woken_by_signals`."""
        return self._wakeup.woken_by_signals()

    def watch(self, fileno: int, readable: Callable[[], None]) -> None:
        """Call `readable` from within `take` whenever the descriptor is readable."""
        self._poller.watch(fileno, _Watch(readable))

    def unwatch(self, fileno: int) -> None:
        """Forget the descriptor; do this before closing it."""
        self._poller.forget(fileno)

    def hold(self) -> None:
        """Take nothing more from the sources until `release`; what arrives waits in the kernel."""
        self._accepting.pause(HELD)

    def release(self) -> None:
        """Undo `hold`. A source that is paused for another reason stays so."""
        if not self._retiring:
            self._accepting.resume(HELD)

    def resume(self, sources: Collection[Source]) -> None:
        """Ask these sources again, for which there was no room. One that is paused for another reason stays so."""
        self._accepting.resume(NO_ROOM, sources)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` once from within `take`, after so many seconds."""
        heapq.heappush(self._timers, (self._clock() + seconds, next(self._order), callback))

    def failed(self, source: Source, error: OSError) -> None:
        """Apply the table to an error met while taking from `source`.

        Raises: the error itself, if the descriptor is no listener any more.
        """
        self._accepting.failed(source, error)

    def close(self) -> None:
        """Close the selector and the wake-up descriptor. Legal twice."""
        self._poller.close()
        self._wakeup.close()

    # from any thread, and from signal handlers

    def stop(self) -> None:
        """Make every `take`, now and later, return None."""
        self.stopped = self.ending = True
        self._wakeup.wake()
        for callback in self._on_stop:
            callback()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have `callback` called by whoever takes, before anything new is taken."""
        self._soon.append(callback)
        self._wakeup.wake()

    def retire(self, grace: float = 0.0, coming: Callable[[], bool] = lambda: False) -> None:
        """Take nothing new, hand out what was accepted before, then stop.

        grace: seconds that what is parked may still wait. Who has not begun by then is handed out too.
        coming: says whether somebody is likely to be parked here yet.
        """
        self.ending = True
        self.call_soon(partial(self._linger, self._clock() + grace, coming))

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Have `stop` call this too, in whatever thread or signal handler it is called: `Wakeup.wake` is fit for that."""
        self._on_stop.append(callback)
        if self.stopped:
            callback()

    def interrupt(self) -> None:
        """Make one `take`, the present or the next, return None although nothing is stopped."""
        self._interrupted = True
        self._wakeup.wake()

    def wake(self) -> None:
        """Make a waiting `take` look around again."""
        self._wakeup.wake()

    # inside

    def _linger(self, until: float, coming: Callable[[], bool]) -> None:
        left = until - self._clock()
        if left > 0 and (coming() or self._lot.parked):
            self.call_later(min(left, LINGER), partial(self._linger, until, coming))
        else:
            self._retire()

    def _retire(self) -> None:
        """Go through all that was accepted, until none of it is left to hand out."""
        self._retiring = True
        self.hold()
        for unit in list(self._lot.parked):
            if not unit.begun and self.unpark(unit):  # it waits for its first byte, and was promised a handler
                self._poller.forget(unit.fileno(), unit)
                self._woken.append(unit)
        for queue in (self._turns, self._later):
            while queue:
                self._woken.append(queue.popleft())
        self._soon.append(self._retire if self._woken else self.stop)  # whose turn is when nothing is woken

    def _wait(self, timeout: float | None) -> None:
        """Wait for a descriptor or a timer, and note which sources are ready."""
        self._polling = True  # before the deadlines are read: one that comes later wakes the poller
        if self._woken or self._later or self.stopped or self._interrupted:
            timeout = 0.0
        moment = self._due()
        if moment is not None:
            due = max(moment - self._clock(), 0.0)
            timeout = due if timeout is None else min(due, timeout)
        self._units = 0
        ready = self._accepting.ready
        ready.clear()  # the poller reports them again, if they are
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
        """Return the moment of the next timer or deadline."""
        timer = self._timers[0][0] if self._timers else None
        parked = self._lot.due()
        return timer if parked is None else parked if timer is None else min(timer, parked)

    def _keep_time(self, now: float) -> None:
        self._woken.extend(self._lot.expire(now))
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
