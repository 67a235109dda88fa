"""A transport with injected faults: each `accept` takes its outcome from a queue, and works as usual when the queue is empty."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import attrs

from socketkit.seams import Address, Kind, Listener, Request, Transport, open_listeners


@attrs.frozen
class Delegate:
    """The next `times` requests are accepted without a fault. An `accept` that finds no waiting request does not count."""

    times: int = 1


Outcome: TypeAlias = int | BaseException | type[BaseException] | Delegate
"""The outcome of one `accept`: OSError with this errno, this exception, or no fault."""


class Faults:
    """A queue of outcomes that records those delivered. Safe to use from any thread; a forked process has its own copy."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._waiting = deque(outcomes)
        self._delivered: list[Outcome] = []
        self._passed = 0  # of the `Delegate` that is first in the queue
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._delivered)} delivered, {len(self._waiting)} waiting>"

    @property
    def delivered(self) -> tuple[Outcome, ...]:
        """The outcomes delivered so far, in order. Requests accepted with an empty queue are not included."""
        return tuple(self._delivered)

    @property
    def waiting(self) -> tuple[Outcome, ...]:
        """The outcomes still to be delivered, in order."""
        return tuple(self._waiting)

    def add(self, *outcomes: Outcome) -> None:
        """Add outcomes to the end of the queue. They apply from the next `accept`, even while a server runs."""
        with self._changed:
            self._waiting.extend(outcomes)

    def wait(self, count: int, timeout: float | None = None) -> bool:
        """Wait until `count` outcomes have been delivered, for at most `timeout` seconds; return whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._delivered) >= count, timeout)

    def accept(self, listener: Listener) -> tuple[Request, Address]:
        """Apply the next outcome to this listener's `accept`. Raises: the fault; whatever the listener raises."""
        with self._changed:
            outcome = self._waiting[0] if self._waiting else None
            if outcome is not None and not isinstance(outcome, Delegate):
                self._deliver()
                raise _error(outcome)
        accepted = listener.accept()  # outside the lock: this is foreign code
        with self._changed:
            if isinstance(outcome, Delegate) and self._waiting and self._waiting[0] is outcome:
                self._passed += 1
                if self._passed >= outcome.times:
                    self._deliver()
        return accepted

    def _deliver(self) -> None:
        self._delivered.append(self._waiting.popleft())
        self._passed = 0
        self._changed.notify_all()


def _error(outcome: int | BaseException | type[BaseException]) -> BaseException:
    if isinstance(outcome, int):
        return OSError(outcome, os.strerror(outcome))
    return outcome() if isinstance(outcome, type) else outcome


def _faults(given: Faults | Iterable[Outcome]) -> Faults:
    return given if isinstance(given, Faults) else Faults(given)


@attrs.frozen
class FaultyTransport:
    """Wraps another transport and applies one outcome of `faults` to each `accept`.

    A fault is raised whether or not a connection is waiting, as in the kernel, which raises EMFILE before it looks at the queue.
    """

    inner: Transport
    """The wrapped transport: it binds, activates, and accepts when no fault is due."""
    faults: Faults = attrs.field(factory=Faults, converter=_faults)
    """A `Faults`, or outcomes for a new one: an errno, an exception or its class, or `Delegate(n)`."""

    @property
    def kind(self) -> Kind:
        """The same as that of `inner`."""
        return self.inner.kind

    @property
    def url(self) -> str:
        """The same as that of `inner`."""
        return self.inner.url

    @property
    def requires(self) -> frozenset[str]:
        """The same as that of `inner`."""
        return getattr(self.inner, "requires", frozenset())

    @property
    def layers(self) -> tuple[Any, ...]:
        """The same as that of `inner`."""
        return getattr(self.inner, "layers", ())

    def open(self) -> Listener:
        """Open `inner`. Raises: ListenError."""
        return self._faulty(self.inner.open())

    def open_all(self) -> Sequence[Listener]:
        """Open `inner`, wherever it listens; all its listeners share `faults`. Raises: ListenError."""
        return [self._faulty(listener) for listener in open_listeners(self.inner)]

    def _faulty(self, listener: Listener) -> Listener:
        return cast("Listener", _FaultyListener(listener, self.faults))  # by `__getattr__`


@attrs.define(eq=False)
class _FaultyListener:
    _inner: Listener
    _faults: Faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def accept(self) -> tuple[Request, Address]:
        return self._faults.accept(self._inner)
