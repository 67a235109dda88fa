"""A worker as seen by its supervisor, and the messages between the two."""

from __future__ import annotations

import contextlib
import enum
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from socketkit.seams import Replica

LEAVE, CLOSE, FORCE, PING, RENEW = "LCFPN"
"""Messages from the supervisor: finish and leave; the same, because the whole server stops; leave at once; report that you respond; renew
the layers."""

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


@attrs.frozen
class Ending:
    """How a worker ended."""

    how: str
    """The cause in words, such as "exit code 1"."""
    clean: bool = False
    """Whether it ended by itself and without an error."""
    late: str = ""
    """If it did not end in time: what became of it."""
    for_good: bool = False
    """Whether a successor would end the same way before it is ready."""


@attrs.define(eq=False)
class WorkerHandle(ABC):
    """A worker as its supervisor sees it."""

    number: int
    """The pid of a process, the number of an interpreter."""
    channel: socket.socket
    replica: Replica
    exit_descriptor: int | None = None
    """A descriptor that is readable once the worker has ended; without one, the end of the channel reports that."""
    state: WorkerState = WorkerState.BOOTING
    verdict: str = ""
    """Why the supervisor aborted the worker; empty if it did not."""
    hurried: bool = False
    """Whether the supervisor has told the worker to end at once."""
    heard: float = attrs.field(factory=time.monotonic)
    served: int = -1
    """How many requests it had served when the supervisor last looked."""

    @abstractmethod
    def ended(self) -> Ending | None:
        """Return how the worker ended; None if it still runs."""

    @abstractmethod
    def end(self) -> None:
        """Make a worker end that does not read its messages, if its code lets it. It has been sent FORCE."""

    @abstractmethod
    def abort(self) -> None:
        """End a useless worker, showing what it does."""

    @abstractmethod
    def kill(self) -> None:
        """End a worker that has not ended in time, whatever it does, or give it up."""

    def close(self) -> None:
        """Close the supervisor's descriptors. The worker may still run."""
        self.channel.close()
