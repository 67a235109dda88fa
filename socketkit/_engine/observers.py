"""Telling the observers of a server what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from socketkit._system.logs import Log
from socketkit.seams.events import EVENTS

log = Log("socketkit.stats")


class Observers:
    """The observers of one server, sorted by event; one that is given twice is told once.

    An observer's error is logged once and never reaches the server.

    everyone: the observers themselves.
    watch_handlers: whether any observer asks when handlers are entered or left.
    """

    def __init__(self, observers: Iterable[object] = ()) -> None:
        self._listeners: dict[str, tuple[Callable[..., object], ...]] = {}
        self._complained: set[Callable[..., object]] = set()
        self.everyone = tuple({id(each): each for each in observers}.values())
        for event in EVENTS:
            listeners = tuple(method for method in (getattr(each, event, None) for each in self.everyone) if callable(method))
            if listeners:
                self._listeners[event] = listeners
        self.watch_handlers = self.wants("handler_entered") or self.wants("handler_left")

    def wants(self, event: str) -> bool:
        """Return whether any observer listens for the event."""
        return event in self._listeners

    def tell(self, event: str, *facts: object) -> None:
        """Call every observer of the event with `facts`."""
        for listener in self._listeners.get(event, ()):
            try:
                listener(*facts)
            except Exception:
                if listener not in self._complained:
                    self._complained.add(listener)
                    log.exception("observer %r failed on %s; further failures of it are not logged", listener, event)


NOBODY = Observers()
