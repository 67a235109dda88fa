"""Waiting on descriptors: one small interface over epoll, and over whatever else `selectors` knows.

Two kinds of interest: a *watched* descriptor is reported as long as it is readable; an *armed* one is reported once and then not
again until it is armed anew. What is reported is the object that was given with the descriptor.
"""

from __future__ import annotations

import contextlib
import select
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Poller(Protocol):
    """`arm` and `forget` may be called from any thread; the rest by the one that polls."""

    def watch(self, fileno: int, thing: Any) -> None:
        """Report `thing` whenever the descriptor is readable."""
        ...

    def arm(self, fileno: int, thing: Any) -> None:
        """Report `thing` once, when the descriptor is or becomes readable."""
        ...

    def forget(self, fileno: int, thing: Any = None) -> None:
        """Report nothing more for the descriptor; call this before it is closed. Legal for one that is not known.

        thing: do so only if the descriptor is still this one's, and not that of something that came after it.
        """
        ...

    def poll(self, timeout: float | None) -> list[Any]:
        """Return what there is to report; wait for it up to `timeout` seconds, None: for ever."""
        ...

    def fileno(self) -> int:
        """Return the descriptor of the poller itself."""
        ...

    def close(self) -> None:
        """Release it. Legal twice."""
        ...


class EpollPoller:
    """Linux: arming is at most one system call, from any thread, also while another waits. Source: epoll(7), epoll_ctl(2).

    A descriptor that was reported is usually armed again before anybody polls, because whoever polls is who serves it. So the
    kernel is left to report it, and told not to only when it does so while nobody wants to hear it.

    A report may be late: what it is about was read, and the descriptor armed again, before whoever polls came to look at it. So
    one that was armed since this poll began is not believed. If it is true, it will be repeated.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._things: dict[int, Any] = {}
        self._known: set[int] = set()  # descriptors that were ever armed
        self._armed: dict[int, int] = {}  # those of them that somebody wants to hear of, and since which poll
        self._polls = 0
        self._silent: set[int] = set()  # those that the kernel was told not to report

    def watch(self, fileno: int, thing: Any) -> None:
        """As `Poller.watch`."""
        self._known.discard(fileno)  # should it be the number of an armed one that was closed behind our back
        self._epoll.register(fileno, select.EPOLLIN)
        self._things[fileno] = thing

    def arm(self, fileno: int, thing: Any) -> None:
        """As `Poller.arm`."""
        same = self._things.get(fileno) is thing
        self._things[fileno] = thing
        self._armed[fileno] = self._polls  # before the look at the silent ones: `_silence` does these two the other way round
        if same and fileno not in self._silent:
            return
        self._silent.discard(fileno)
        if fileno in self._known:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile, and the number is another's now
                self._epoll.modify(fileno, select.EPOLLIN)
                return
        self._known.add(fileno)
        try:
            self._epoll.register(fileno, select.EPOLLIN)
        except FileExistsError:  # by another thread, for one that was forgotten and closed meanwhile, whose number this one got
            self._epoll.modify(fileno, select.EPOLLIN)

    def forget(self, fileno: int, thing: Any = None) -> None:
        """As `Poller.forget`."""
        if thing is not None and self._things.get(fileno) is not thing:
            return
        self._known.discard(fileno)
        self._armed.pop(fileno, None)
        self._silent.discard(fileno)
        if self._things.pop(fileno, None) is not None:
            with contextlib.suppress(OSError, ValueError):  # the descriptor, or the poller, may be closed by now
                self._epoll.unregister(fileno)

    def poll(self, timeout: float | None) -> list[Any]:
        """As `Poller.poll`."""
        things, known, armed = self._things, self._known, self._armed
        self._polls = number = self._polls + 1
        reported = []
        for fileno, _ in self._epoll.poll(-1 if timeout is None else timeout):  # -1 events is "some"
            if fileno in known:
                since = armed.get(fileno, -1)
                if since == number:
                    continue
                if since == -1:
                    if fileno not in self._silent:  # else this was its one shot
                        self._silence(fileno)
                    continue
                armed.pop(fileno, None)
            thing = things.get(fileno)
            if thing is not None:  # it may have been forgotten since the kernel's report
                reported.append(thing)
        return reported

    def _silence(self, fileno: int) -> None:
        """Have the kernel not report a descriptor until it is armed.

        Without EPOLLONESHOT it would go on to report a peer that hung up, whatever events it is asked for.
        """
        self._silent.add(fileno)
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            self._epoll.modify(fileno, select.EPOLLONESHOT)
            if fileno in self._armed:  # just now
                self._silent.discard(fileno)
                self._epoll.modify(fileno, select.EPOLLIN)

    def fileno(self) -> int:
        """As `Poller.fileno`."""
        return self._epoll.fileno()

    def close(self) -> None:
        """As `Poller.close`."""
        self._epoll.close()


class SelectorPoller:
    """Everything else. What other threads ask for is done by the one that polls, once `wake` has made it look."""

    def __init__(self, selector: selectors.BaseSelector, wake: Callable[[], None] = lambda: None) -> None:
        self._selector: Any = selector
        self._wake = wake
        self._asked: deque[tuple[int, Any]] = deque()
        self._armed: dict[int, Any] = {}

    def watch(self, fileno: int, thing: Any) -> None:
        """As `Poller.watch`."""
        self._selector.register(fileno, selectors.EVENT_READ, thing)

    def arm(self, fileno: int, thing: Any) -> None:
        """As `Poller.arm`."""
        self._armed[fileno] = thing
        self._asked.append((fileno, thing))
        self._wake()

    def forget(self, fileno: int, thing: Any = None) -> None:
        """As `Poller.forget`."""
        if thing is not None and self._armed.get(fileno) is not thing:
            return
        if self._armed.pop(fileno, None) is None:
            with contextlib.suppress(KeyError, ValueError, OSError):  # unknown, or closed by now
                self._selector.unregister(fileno)
        else:
            self._asked.append((fileno, None))

    def poll(self, timeout: float | None) -> list[Any]:
        """As `Poller.poll`."""
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
        """As `Poller.fileno`."""
        return int(self._selector.fileno())

    def close(self) -> None:
        """As `Poller.close`."""
        self._selector.close()


def best_poller(wake: Callable[[], None]) -> Poller:
    """Return the platform's best. `wake` makes a `poll` in another thread return."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller(selectors.DefaultSelector(), wake)
