"""What keeps a server from stopping: requests that run on, and an accept that waits for its client. Waking them, and telling what they do."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from types import FrameType

from socketkit._engine.ledger import Entry, Ledger
from socketkit._engine.sources import ClassicSource, ListenerSource, RequestSource
from socketkit._system.logs import Log
from socketkit._system.sockets import cut_off
from socketkit._system.threads import current_frames

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit.seams import Stuck

log = Log("socketkit.serving")

AFTER_FORCE = 0.5
"""Seconds that handlers get to return from blocking calls once their sockets are shut down."""


def shut_down(entries: Iterable[Entry]) -> None:
    """Shut down the requests' sockets in both directions: reads then return end of stream, writes raise."""
    for entry in entries:
        with contextlib.suppress(Exception):  # a datagram has no socket; a connection may be closed by now
            cut_off(entry.request)


def stuck_in(ledger: Ledger) -> tuple[Stuck, ...]:
    """Return the requests in progress, with their age and the stack of their thread."""
    from socketkit.seams.stats import Stuck  # noqa: PLC0415 - an attrs class, and classic servers do not drain

    now, frames = ledger.clock(), current_frames()
    return tuple(Stuck(entry.client_address, now - entry.since, _stack(frames.get(entry.thread or 0))) for entry in ledger.active())


def _stack(frame: Any) -> str:
    import traceback  # noqa: PLC0415 - few servers need it

    return "".join(traceback.format_stack(frame)) if frame is not None else ""


_TAKES = {ClassicSource.take.__code__, ListenerSource.take.__code__}


def break_off(sources: Sequence[RequestSource]) -> None:
    """Shut down the connection that a `get_request` of these sources still waits for, such as that of a client in a TLS handshake.

    It is the program's own `get_request`, which has not returned the connection yet. So only the stack of its thread knows it.
    """
    for frame in current_frames().values():
        inner: list[FrameType] = []
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code in _TAKES and (source := outer.f_locals["self"]) in sources:
                _shut_down_in(inner, source)
                break
            inner.append(outer)
            outer = outer.f_back


def _shut_down_in(frames: Sequence[FrameType], source: RequestSource) -> None:
    """Shut down the sockets of the innermost frame that has any, except the listener."""
    for frame in frames:
        held = [each for each in frame.f_locals.values() if isinstance(each, socket.socket) and each.fileno() not in {-1, source.fileno()}]
        for sock in held:
            with contextlib.suppress(OSError):  # it is not connected, or no longer
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not its own, which may want to say goodbye
                log.warning("%s: the server stopped while get_request waited for a client", source.url)
        if held:
            return


class Holdup:
    """The handlers that run in the serving thread when a drain's time is up, and so keep the drain from going on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.woken: set[Entry] = set()
        self._told = False

    def wake(self, thread: int, *, late: bool) -> None:
        """Wake the handler that runs in this thread, if any. late: log one that was woken before and goes on; once."""
        here = {entry for entry in self._ledger.active() if entry.thread == thread}
        fresh = here - self.woken
        self.woken |= fresh  # before they can end: the report counts them
        shut_down(fresh)
        if late and here - fresh and not self._told:
            self._told = True
            for stuck in stuck_in(self._ledger):
                log.warning("a handler runs on after the deadline and keeps the server from stopping: %s\n%s", stuck.peer, stuck.stack)
