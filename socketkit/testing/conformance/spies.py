"""Recipes and live parts that pass everything on and note what a dispatcher does with its intake and its loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import attrs

from socketkit.testing.conformance.promises import BrokenPromiseError


@attrs.define(eq=False)
class Notes:
    """What was seen. faults: sentences about what should not have been."""

    faults: list[str] = attrs.field(factory=list)
    calls: dict[int, int] = attrs.field(factory=dict)
    """How often each unit that was taken was called, refused or abandoned, by its number."""
    watched: set[int] = attrs.field(factory=set)
    error: Exception | None = None
    """What the next `take` raises."""
    inside: int = 0
    lock: Any = attrs.field(factory=threading.Lock)

    def check(self) -> None:
        """Raises: BrokenPromiseError with the first fault, if there is one."""
        for fault in self.faults:
            raise BrokenPromiseError(fault)

    @property
    def taken(self) -> int:
        """The number of units that were taken."""
        return len(self.calls)

    @property
    def called(self) -> int:
        """How many of them were called."""
        return sum(map(bool, list(self.calls.values())))


@attrs.frozen
class Spied:
    """The recipe of a dispatcher whose live part is watched."""

    _recipe: Any
    _notes: Notes = attrs.field(eq=False)

    def start(self, work: Any) -> _Live:
        """Return the live part, watched."""
        return _Live(self._recipe.start(work), self._notes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recipe, name)


class _Passing:
    """Passes on what it does not define."""

    def __init__(self, inner: Any, notes: Notes) -> None:
        self.inner = inner
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Live(_Passing):
    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name == "drive":
            return partial(self._drive, found)
        return partial(self._attach, found) if name == "attach" else found

    def _drive(self, drive: Callable[[Any], None], open_intake: Callable[..., Any]) -> None:
        drive(lambda **options: _Intake(open_intake(**options), self._notes))

    def _attach(self, attach: Callable[[Any], None], loop: Any) -> None:
        attach(None if loop is None else _Loop(loop, self._notes))


class _Intake(_Passing):
    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._notes.inside:
            self._notes.faults.append("the intake was closed while a thread was inside take()")
        self.inner.__exit__(*error)

    def take(self, *timeout: float | None) -> _Unit | None:
        with self._taking():
            error, self._notes.error = self._notes.error, None
            if error is not None:
                raise error
            unit = self.inner.take(*timeout)
        return None if unit is None else _Unit(unit, self._notes)

    def again(self, unit: _Unit) -> Any:
        unit.forget()
        return self.inner.again(unit.inner)

    @contextmanager
    def _taking(self) -> Any:
        notes = self._notes
        with notes.lock:
            notes.inside += 1
            if notes.inside > 1:
                notes.faults.append("two threads were inside take() at the same time")
        try:
            yield
        finally:
            with notes.lock:
                notes.inside -= 1


class _Unit(_Passing):
    def __init__(self, unit: Any, notes: Notes) -> None:
        super().__init__(unit, notes)
        with notes.lock:
            self._number = len(notes.calls)
            notes.calls[self._number] = 0

    def __call__(self) -> object:
        self._note()
        return self.inner()

    def __getattr__(self, name: str) -> Any:
        if name in {"refuse", "abandon"}:
            self._note()
        return super().__getattr__(name)

    def forget(self) -> None:
        """Count as ended: it is taken once more."""
        self._note()

    def _note(self) -> None:
        with self._notes.lock:
            self._notes.calls[self._number] += 1


class _Loop(_Passing):
    def watch(self, fileno: int, readable: Callable[[], None]) -> None:
        self._notes.watched.add(fileno)
        self.inner.watch(fileno, readable)

    def unwatch(self, fileno: int) -> None:
        try:
            os.fstat(fileno)
        except OSError:
            self._notes.faults.append("a descriptor was closed before unwatch(); the loop may have watched somebody else's")
        self._notes.watched.discard(fileno)
        self.inner.unwatch(fileno)
