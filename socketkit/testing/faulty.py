"""A transport that fails on order: each `accept` raises what a queue says, and works as usual when the queue is empty."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from socketkit.seams import Address, Kind, Listener, Request, Transport


@attrs.frozen
class Delegate:
    """So many requests are accepted as if there were no faults. An `accept` that finds nobody waiting does not count."""

    times: int = 1


Outcome: TypeAlias = int | BaseException | type[BaseException] | Delegate
"""What one `accept` does: raise OSError with this errno, raise this exception, or work."""


class Faults:
    """A queue of outcomes, and what became of them. Safe from every thread; a forked process has a copy of its own."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._waiting = deque(outcomes)
        self._delivered: list[Outcome] = []
        self._passed = 0  # of the `Delegate` that is first in the queue
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._delivered)} delivered, {len(self._waiting)} waiting>"

    @property
    def delivered(self) -> tuple[Outcome, ...]:
        """The outcomes that have happened, in order. Requests that were accepted with an empty queue are not among them."""
        return tuple(self._delivered)

    @property
    def waiting(self) -> tuple[Outcome, ...]:
        """The outcomes that are to come."""
        return tuple(self._waiting)

    def add(self, *outcomes: Outcome) -> None:
        """Put outcomes at the end of the queue. The next `accept` is due to them, also while a server runs."""
        with self._changed:
            self._waiting.extend(outcomes)

    def wait(self, count: int, timeout: float | None = None) -> bool:
        """Wait until so many outcomes were delivered, `timeout` seconds at most; return whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._delivered) >= count, timeout)

    def accept(self, listener: Listener) -> tuple[Request, Address]:
        """Do what the queue says, with this listener. Raises: the fault; what the listener raises."""
        with self._changed:
            outcome = self._waiting[0] if self._waiting else None
            if outcome is not None and not isinstance(outcome, Delegate):
                self._deliver()
                raise _error(outcome)
        accepted = listener.accept()  # outside the lock: it is somebody else's code
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
    """Another transport, whose `accept` first does what the faults say, one outcome a call.

    A fault is raised whether or not somebody waits, as the system does it: EMFILE comes before the queue is looked at.
    """

    inner: Transport
    """What it wraps: it binds, activates, and accepts when no fault is due."""
    faults: Faults = attrs.field(factory=Faults, converter=_faults)
    """A `Faults`, or outcomes for a new one: an errno, an exception or its class, or `Delegate(n)`."""

    @property
    def kind(self) -> Kind:
        """As `inner`."""
        return self.inner.kind

    @property
    def url(self) -> str:
        """As `inner`."""
        return self.inner.url

    @property
    def requires(self) -> frozenset[str]:
        """As `inner`."""
        return getattr(self.inner, "requires", frozenset())

    @property
    def layers(self) -> tuple[Any, ...]:
        """As `inner`."""
        return getattr(self.inner, "layers", ())

    def open(self) -> Listener:
        """Open `inner`. Raises: ListenError."""
        return _FaultyListener(self.inner.open(), self.faults)


class _FaultyListener:
    def __init__(self, inner: Listener, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.socket = inner.socket
        self.url = inner.url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # what only some listeners have, such as `max_packet_size`

    @property
    def address(self) -> Address:
        return self._inner.address

    def fileno(self) -> int:
        return self._inner.fileno()

    def accept(self) -> tuple[Request, Address]:
        return self._faults.accept(self._inner)

    def close(self) -> None:
        self._inner.close()
