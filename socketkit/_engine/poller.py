"""Waiting on descriptors: one small interface over epoll and the selectors of `selectors`.

There are two kinds of interest. A *watched* descriptor is reported as long as it is readable; an *armed* one is reported once, then not
again until it is armed again. The poller reports the object that was registered with the descriptor.
"""

from __future__ import annotations

import contextlib
import select
import selectors
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any


class Poller(ABC):
    """What a poller does. `arm` and `forget` may be called from any thread, the rest only from the polling thread."""

    @abstractmethod
    def watch(self, fileno: int, thing: Any) -> None:
        """Report `thing` whenever the descriptor is readable."""

    @abstractmethod
    def arm(self, fileno: int, thing: Any) -> None:
        """Report `thing` once, when the descriptor is or becomes readable."""

    @abstractmethod
    def forget(self, fileno: int, thing: Any = None) -> None:
        """Stop reporting the descriptor; call this before it is closed. Does nothing for an unknown descriptor.

        thing: act only if the descriptor is still registered with this object, not with a later one; None: always.
        """

    @abstractmethod
    def poll(self, timeout: float | None) -> list[Any]:
        """Return the objects whose descriptors are readable; wait up to `timeout` seconds for the first, None: for ever."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable while `poll` has something to report. It stays the same until the poller is closed."""

    @abstractmethod
    def close(self) -> None:
        """Close the poller. May be called twice."""


class EpollPoller(Poller):
    """A poller for Linux. Arming takes at most one system call, from any thread, even during a poll. Source: epoll(7), epoll_ctl(2).

    A reported descriptor is usually armed again before the next poll, because the polling thread serves it. So it stays registered
    with the kernel, and is silenced only if the kernel reports it while it is not armed.

    A report may be late: its bytes may have been read, and the descriptor armed again, before the polling thread processes it. So a
    report for a descriptor that was armed after this poll began is ignored. If it is still true, the kernel repeats it.

    An entry of the kernel may be stale: it lives as long as the open file, which a copy of the descriptor keeps open, and only the closed
    number could remove it (epoll(7), question 6). If a handler closes its socket itself while a child process has a copy, such an entry
    would be reported for ever. So the poller doubts a number whose entry it could not find, and replaces the epoll at a false report.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._things: dict[int, Any] = {}
        self._known: set[int] = set()  # descriptors that were ever armed
        self._armed: dict[int, int] = {}  # those that are armed now, with the number of the poll when they were
        self._polls = 0
        self._silent: set[int] = set()  # those that the kernel was told not to report
        self._doubted: set[int] = set()  # numbers that may have a stale entry
        self._around: select.epoll | None = None  # contains the epoll, for `fileno`: made when that is called first

    def watch(self, fileno: int, thing: Any) -> None:
        self._known.discard(fileno)  # in case the number belonged to an armed descriptor that was closed without `forget`
        self._epoll.register(fileno, select.EPOLLIN)
        self._things[fileno] = thing

    def arm(self, fileno: int, thing: Any) -> None:
        same = self._things.get(fileno) is thing
        self._things[fileno] = thing
        self._armed[fileno] = self._polls  # before `_silent` is read: `_silence` uses the opposite order
        if same and fileno not in self._silent:
            return
        self._silent.discard(fileno)
        epoll = self._epoll  # read once: `_renew` may replace it
        if fileno in self._known:
            try:
                epoll.modify(fileno, select.EPOLLIN)
            except FileNotFoundError:  # closed meanwhile, and its number reused
                self._doubted.add(fileno)
            else:
                return
        self._known.add(fileno)
        try:
            epoll.register(fileno, select.EPOLLIN)
        except FileExistsError:  # another thread has registered the same number for a descriptor that was forgotten and closed meanwhile
            epoll.modify(fileno, select.EPOLLIN)

    def forget(self, fileno: int, thing: Any = None) -> None:
        if thing is not None and self._things.get(fileno) is not thing:
            return
        self._known.discard(fileno)
        self._armed.pop(fileno, None)
        self._silent.discard(fileno)
        if self._things.pop(fileno, None) is not None:
            try:
                self._epoll.unregister(fileno)
            except (OSError, ValueError):  # the descriptor or the poller may be closed by now
                self._doubted.add(fileno)

    def poll(self, timeout: float | None) -> list[Any]:
        things, known, armed, doubted = self._things, self._known, self._armed, self._doubted
        self._polls = number = self._polls + 1
        reported = []
        for fileno, _ in self._epoll.poll(-1 if timeout is None else timeout):  # a negative timeout waits for ever
            if doubted and fileno in doubted and not self._is_true(fileno):
                self._renew()
                continue
            if fileno in known:
                since = armed.get(fileno, -1)
                if since == number:
                    continue
                if since == -1:
                    if fileno not in self._silent:  # otherwise this was its one EPOLLONESHOT report
                        self._silence(fileno)
                    continue
                armed.pop(fileno, None)
            thing = things.get(fileno)
            if thing is not None:  # it may have been forgotten since the kernel's report
                reported.append(thing)
        return reported

    def _silence(self, fileno: int) -> None:
        """Stop the kernel from reporting a descriptor until it is armed.

        Without EPOLLONESHOT the kernel would keep reporting a peer that hung up, whatever the event mask.
        """
        self._silent.add(fileno)
        try:
            self._epoll.modify(fileno, select.EPOLLONESHOT)
            if fileno in self._armed:  # armed just now, by another thread
                self._silent.discard(fileno)
                self._epoll.modify(fileno, select.EPOLLIN)
        except OSError:  # closed, perhaps with its entry: the next report will tell
            self._silent.discard(fileno)
            self._doubted.add(fileno)

    def _is_true(self, fileno: int) -> bool:
        """Return whether the descriptor is registered, open and readable."""
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return fileno in self._things and any(not event & select.POLLNVAL for _, event in poll.poll(0))

    def _renew(self) -> None:
        """Replace the epoll by a new one, with the entries of all descriptors that are registered here.

        Other threads may arm and forget meanwhile. They change `_things` before they read `_epoll`, and here it is the other way round, so
        what they change is seen here, or they change the new epoll.
        """
        try:
            new = select.epoll()
        except OSError:  # no descriptor is left; the kernel repeats the false report
            return
        self._epoll = new  # nobody closes the old one while another thread uses it: it goes with its last reference
        self._doubted.clear()
        self._silent.clear()
        if self._around is not None:
            self._around.register(new.fileno(), select.EPOLLIN)
        for fileno in list(self._things):
            with contextlib.suppress(OSError):  # it is closed, or was armed just now
                new.register(fileno, select.EPOLLIN)
            if fileno not in self._things:  # forgotten just now
                with contextlib.suppress(OSError):
                    new.unregister(fileno)

    def fileno(self) -> int:
        inner = self._epoll.fileno()
        if self._around is None:
            self._around = select.epoll()
            self._around.register(inner, select.EPOLLIN)
        return self._around.fileno()

    def close(self) -> None:
        self._epoll.close()
        if self._around is not None:
            self._around.close()


class SelectorPoller(Poller):
    """A poller over any selector. The polling thread carries out requests of other threads, after `wake` interrupts its wait."""

    def __init__(self, selector: selectors.BaseSelector, wake: Callable[[], None] = lambda: None) -> None:
        self._selector: Any = selector
        self._wake = wake
        self._asked: deque[tuple[int, Any]] = deque()
        self._armed: dict[int, Any] = {}

    def watch(self, fileno: int, thing: Any) -> None:
        self._selector.register(fileno, selectors.EVENT_READ, thing)

    def arm(self, fileno: int, thing: Any) -> None:
        self._armed[fileno] = thing
        self._asked.append((fileno, thing))
        self._wake()

    def forget(self, fileno: int, thing: Any = None) -> None:
        if thing is not None and self._armed.get(fileno) is not thing:
            return
        if self._armed.pop(fileno, None) is None:
            with contextlib.suppress(KeyError, ValueError, OSError):  # unknown, or closed by now
                self._selector.unregister(fileno)
        else:
            self._asked.append((fileno, None))

    def poll(self, timeout: float | None) -> list[Any]:
        while self._asked:
            fileno, thing = self._asked.popleft()
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(fileno)
            if thing is not None and self._armed.get(fileno) is thing:
                self._selector.register(fileno, selectors.EVENT_READ, thing)
        reported = []
        for key, _ in self._selector.select(timeout):
            if key.fd in self._armed:
                del self._armed[key.fd]
                self._selector.unregister(key.fd)
            reported.append(key.data)
        return reported

    def fileno(self) -> int:
        return int(self._selector.fileno())

    def close(self) -> None:
        self._selector.close()


def best_poller(wake: Callable[[], None]) -> Poller:
    """Return the platform's best poller. wake: makes a `poll` in another thread return."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller(selectors.DefaultSelector(), wake)
