"""Requests that run on although their server wants to stop: waking them, and telling what they do."""

from __future__ import annotations

import contextlib
import socket
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from socketkit._engine.ledger import Entry, Ledger
from socketkit._system.logs import Log
from socketkit.seams.stats import Stuck

log = Log("socketkit.serving")

AFTER_FORCE = 0.5
"""Seconds that handlers get to return from blocking calls once their sockets are shut down."""


def shut_down(entries: Iterable[Entry]) -> None:
    """Shut down the requests' sockets in both directions: reads then return end of stream, writes raise."""
    for entry in entries:
        with contextlib.suppress(Exception):  # a datagram has no socket; a connection may be closed by now
            entry.request.shutdown(socket.SHUT_RDWR)


def stuck_in(ledger: Ledger) -> tuple[Stuck, ...]:
    """Return the requests in progress, with their age and the stack of their thread."""
    now, frames = ledger.clock(), sys._current_frames()  # noqa: SLF001 - the only way to see other threads' stacks
    return tuple(Stuck(entry.client_address, now - entry.since, _stack(frames.get(entry.thread or 0))) for entry in ledger.active())


def _stack(frame: Any) -> str:
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


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
