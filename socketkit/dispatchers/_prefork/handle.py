"""A worker process as seen by its supervisor, and the messages between the two."""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from socketkit.seams import Replica

LEAVE, CLOSE, FORCE, PING, RENEW = "LCFPN"
"""Messages from the parent: finish and leave; the same, because the whole server stops; leave at once; report that you respond; renew the
layers."""

READY, HERE, DUE, GOING, STOP = "RHDGS"
"""Messages from a worker: it accepts requests; it responds; start its successor; it is leaving; stop the whole server."""


def say(channel: socket.socket, word: str) -> None:
    """Send one of these messages."""
    with contextlib.suppress(OSError):  # the other side is gone, which its end of the channel or its exit reports
        channel.send(word.encode())


def hear(channel: socket.socket) -> str | None:
    """Return the messages received, "" if there are none, or None if the channel has ended."""
    try:
        return channel.recv(64).decode() or None
    except BlockingIOError:
        return ""
    except OSError:
        return None


class WorkerState(enum.Enum):
    """What a worker is doing, as far as its parent knows."""

    BOOTING = enum.auto()
    SERVING = enum.auto()
    DUE = enum.auto()  # serving until its successor serves
    LEAVING = enum.auto()


@attrs.define(eq=False)
class WorkerHandle:
    """A worker as its parent sees it."""

    pid: int
    channel: socket.socket
    exit_descriptor: int | None
    """The worker's pidfd; None if the system has none, and then the end of the channel reports the exit."""
    replica: Replica
    state: WorkerState = WorkerState.BOOTING
    verdict: str = ""
    """Why the parent aborted the worker; empty if it did not."""
    hurried: bool = False
    """Whether the parent has told the worker to end at once."""
    killed: bool = False
    """Whether the parent has sent SIGKILL, because the worker did not end in time."""
    heard: float = attrs.field(factory=time.monotonic)
    served: int = -1
    """How many requests it had served when the parent last looked."""

    def close(self) -> None:
        """Close the parent's descriptors. The worker process keeps running."""
        self.channel.close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)
