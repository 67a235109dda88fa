"""A dispatcher that runs a request only when a test says so."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from socketkit.seams import OpenIntake, Parking, Wakeup, Work

PATIENCE = 10.0
"""Seconds that a `step` waits for the serving thread. It takes longer only if a handler waits for something that does not come."""


class Steps:
    """What a test asks of a `Stepping` dispatcher, and what came of it. Safe to use from any thread."""

    def __init__(self) -> None:
        self._asked: deque[_Step] = deque()
        self._wakeup: Wakeup | None = None

    def step(self) -> bool:
        """Have one unit of work taken and run; return whether there was one. See `Stepping.step`."""
        step = _Step()
        self._asked.append(step)
        if self._wakeup is not None:
            self._wakeup.wake()
        if not step.done.wait(PATIENCE):
            with contextlib.suppress(ValueError):  # it has begun
                self._asked.remove(step)
            raise TimeoutError(
                f"the step was not over after {PATIENCE:g} s: does the server serve, and does the handler wait for somebody?"
            )
        return step.found

    def follow(self, wakeup: Wakeup) -> None:
        """Have `wakeup` woken at each step from now on."""
        self._wakeup = wakeup

    def pop(self) -> _Step | None:
        """Return the next step that was asked for, if any."""
        try:
            return self._asked.popleft()
        except IndexError:
            return None


@attrs.define(eq=False)
class _Step:
    found: bool = False
    done: threading.Event = attrs.field(factory=threading.Event)


@attrs.frozen
class Stepping:
    """Takes and runs one unit of work for each call of `step`, so that a test decides what happens when.

    A unit is a new connection that has sent something, the next request of a conversation, or a datagram. Nothing else happens between
    two steps: with the transport `Memory` and a `FakeClock`, a test of a handler needs no ports and no sleeps. While the server drains,
    all that is left runs without being asked.
    """

    _steps: Steps = attrs.field(factory=Steps, init=False, eq=False, repr=False)

    def step(self) -> bool:
        """Have the server take and run one unit, and return once it has; return False at once if nothing waits.

        Raises: TimeoutError after ten seconds, if the server does not serve or a handler waits for somebody.
        """
        return self._steps.step()

    def start(self, work: Work) -> _Stepper:  # noqa: ARG002 - each unit knows what to do
        """Return the live part."""
        return _Stepper(self._steps)


class _Stepper:
    runs_in_place = True
    parking = Parking()

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._wakeup = Wakeup()
        self._has_run = False
        steps.follow(self._wakeup)

    def drive(self, open_intake: OpenIntake) -> None:
        """Run a unit for each step; in a drain, which calls this again, run all of them."""
        with open_intake() as intake:
            intake.on_stop(self._wakeup.wake)
            if self._has_run:
                while (unit := intake.take()) is not None:
                    unit()
            self._has_run = True
            while not intake.stopped:
                step = self._steps.pop()
                if step is None:
                    self._wakeup.wait()
                else:
                    self._take(step, intake.take)

    def _take(self, step: _Step, take: Callable[..., Any]) -> None:
        try:
            unit = take(0)
            if unit is not None:
                step.found = True
                unit()
        finally:
            step.done.set()

    def wait(self, _timeout: float | None) -> bool:
        """Return True: what runs, runs in `drive`."""
        return True

    def close(self) -> None:
        self._wakeup.close()
