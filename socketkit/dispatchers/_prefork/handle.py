"""A worker process as its supervisor sees it, and the words that both say to each other."""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from socketkit.seams import Branch

LEAVE, CLOSE, FORCE, PING = "LCFP"
"""What a parent says: finish and go; the same, and the whole server does; go at once; are you there?"""

READY, HERE, DUE, GOING, STOP = "RHDGS"
"""What a worker says: I take requests; yes; send another in my place; I leave; the whole server shall stop."""


class WorkerState(enum.Enum):
    """What a worker is doing, as far as its parent knows."""

    BOOTING = enum.auto()
    SERVING = enum.auto()
    DUE = enum.auto()  # serving until a successor is
    LEAVING = enum.auto()


@attrs.define(eq=False)
class WorkerHandle:
    """A worker as its parent sees it."""

    pid: int
    channel: socket.socket
    exit_descriptor: int | None
    """Its pidfd; None where there is none, and the end of the channel says it."""
    branch: Branch
    state: WorkerState = WorkerState.BOOTING
    verdict: str = ""
    """Why its parent ended it."""
    heard: float = attrs.field(factory=time.monotonic)
    settled: int = -1

    def say(self, word: str) -> None:
        """Say a word of `LEAVE`, `CLOSE`, `FORCE` and `PING`."""
        with contextlib.suppress(OSError):  # it is gone, which will be heard of
            self.channel.send(word.encode())

    def hear(self) -> str | None:
        """Return the words that have come, "" if there are none, and None if there will be none any more."""
        try:
            return self.channel.recv(64).decode() or None
        except BlockingIOError:
            return ""
        except OSError:
            return None

    def close(self) -> None:
        """Release this side's descriptors. The process goes on."""
        self.channel.close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)
