"""Request deadlines: finds overdue requests, records them as timed out and ends them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from socketkit._system.logs import Log
from socketkit._system.sockets import acknowledged, cut_off, is_readable, limit_sends, peek, received
from socketkit._system.timer import TimerThread
from socketkit.seams import Request
from socketkit.seams.limits import Limits

if TYPE_CHECKING:
    from socketkit._engine.ledger import Entry, Ledger

log = Log("socketkit.deadlines")

GRAIN = 0.05
"""Shortest time between two checks, in seconds."""

LONGEST = 86400.0
"""Longest time between two checks, in seconds, because system calls cap their timeouts."""

NEVER = float("inf")

_INET = (socket.AF_INET, getattr(socket, "AF_INET6", socket.AF_INET))


class Deadlines:
    """Enforces the deadlines of the active connections, for one run of one server.

    A request costs nothing here beyond a call to `begin` when `asleep`. There is one timer at most, set for the earliest deadline, even
    that of a request that begins right now. When it fires, all ledger entries are checked, and it is set anew. Without active requests
    there is no timer. A request that begins meanwhile is not missed: `asleep` is set *before* the last check, and a request is in the
    ledger *before* its thread reads `asleep`.

    later: calls a function after a number of seconds, in the thread that calls `begin` or in any other. cut: ends an overdue request;
    None: shut down its socket, which wakes a thread that is blocked on it.
    """

    def __init__(
        self,
        limits: Limits,
        ledger: Ledger,
        later: Callable[[float, Callable[[], object]], None],
        *,
        speaks_first: Callable[[], bool],
        cut: Callable[[Request], None] | None = None,
    ) -> None:
        self.first_byte = limits.first_byte
        self.asleep = True
        self._request = NEVER if limits.request is None else limits.request
        self._first_byte = NEVER if limits.first_byte is None else limits.first_byte
        self._handshake = NEVER if limits.handshake is None else limits.handshake
        self._write_stall = NEVER if limits.write_stall is None else limits.write_stall
        self._stalls: dict[Entry, tuple[int, float]] = {}  # those who send: how much the client has taken, and since when no more
        self._pace = min(self._request, self._first_byte, self._handshake, self._write_stall, LONGEST)  # no deadline is nearer at first
        self._ledger = ledger
        self._clock = ledger.clock
        self._later = later
        self._speaks_first = speaks_first
        self._cut = cut or cut_off
        self._setting = threading.Lock()  # guards the change of `asleep` to False, so that only one timer is set

    @staticmethod
    def are_needed(limits: Limits) -> bool:
        """Return whether the limits include a deadline."""
        return any(each is not None for each in (limits.first_byte, limits.request, limits.handshake, limits.write_stall))

    def begin(self) -> None:
        """Start the timer, because a request has begun; call it only while `asleep` is set."""
        if self._wake_up():
            try:
                self._later(self._pace, self._look)
            except RuntimeError as error:  # no thread available for the timer
                log.warning("cannot enforce deadlines for now: %s", error)
                self.asleep = True

    def listen_to(self, request: Any) -> None:
        """Watch for the peer's first byte, if the system does not report whether one was received."""
        if self.first_byte is not None and hasattr(select, "poll") and type(request) is socket.socket and request.family not in _INET:
            request.__class__ = Unheard

    def _wake_up(self) -> bool:
        with self._setting:
            was_asleep, self.asleep = self.asleep, False
        return was_asleep

    def _look(self) -> None:
        now = self._clock()
        end = self._cut_those_over(now)
        if end == NEVER:
            self.asleep = True
            end = self._cut_those_over(now)
            if end == NEVER or not self._wake_up():
                return
        left = min(end - self._clock(), self._pace)  # the check itself has taken some time, and requests begin meanwhile
        self._later(max(left, GRAIN) if left > 0 else 0.0, self._look)

    def _cut_those_over(self, now: float) -> float:
        """End all overdue requests; return the earliest deadline of the rest, `NEVER` if there is none."""
        exempt, first = self._first_byte == NEVER or self._speaks_first(), NEVER
        before, self._stalls = self._stalls, {}
        for entry in self._ledger.active():
            if isinstance(entry.request, tuple) or entry.is_cut:
                continue
            end = entry.began + self._request
            if now >= end:
                self._end(entry, "request", f"not finished within {self._request:g} s")
                continue
            if entry.layers:  # in the parent of a forked child for ever: only the child knows when it has passed them
                end = min(end, entry.began + self._handshake)
                if now >= end:
                    self._end(entry, "handshake", f"the handshake was not over within {self._handshake:g} s")
                    continue
            elif not exempt and not entry.heard and entry.began < NEVER:
                end = min(end, entry.began + self._first_byte)
                if now >= end:
                    end = entry.began + self._request
                    entry.heard = not _is_silent(entry.request, entry.preamble)
                    if not entry.heard:
                        self._end(entry, "first_byte", f"no byte arrived within {self._first_byte:g} s")
                        continue
            end = min(end, self._end_of_stall(entry, before.get(entry), now))
            if now >= end:
                self._end(entry, "write_stall", f"the client took nothing of what it was sent for {self._write_stall:g} s")
                continue
            first = min(first, end)
        return first

    def _end_of_stall(self, entry: Entry, before: tuple[int, float] | None, now: float) -> float:
        """Return when a send that waits is over, unless the client takes something. before: what was seen at the last look."""
        is_sending = self._write_stall < NEVER and getattr(entry.request, "is_sending", False)
        taken = acknowledged(entry.request) if is_sending else None
        if taken is None:
            return NEVER
        since = before[1] if before is not None and before[0] == taken else now
        self._stalls[entry] = taken, since
        return since + self._write_stall

    def _end(self, entry: Entry, limit: str, reason: str) -> None:
        self._ledger.cut(entry, limit, reason)
        with contextlib.suppress(Exception):  # it has just ended by itself
            self._cut(entry.request)


def keep_in_child(limits: Limits, ledger: Ledger, request: Request, *, speaks_first: Callable[[], bool]) -> None:
    """In a child forked for a request: keep its deadlines but that for the whole request, which its parent keeps."""
    limits = attrs.evolve(limits, request=None)
    entry = None if isinstance(request, tuple) else ledger.find(request)
    if entry is not None and (entry.layers or (limits.first_byte is not None and peek(request) is None)):
        deadlines = Deadlines(limits, ledger, TimerThread(ledger.clock).call_later, speaks_first=speaks_first)
        deadlines.listen_to(request)
        deadlines.begin()


# --- silent peers ----------------------------------------------------------------------------------------------------


def _is_silent(request: Any, preamble: int) -> bool:
    """Return whether the peer is known not to have sent a byte, beyond what it has sent to the layers."""
    if type(request) is Unheard:
        return not is_readable(socket.socket.fileno(request))  # if readable, the handler has yet to read it
    return received(request) == preamble


class Unheard(socket.socket):
    """A connection whose peer has not sent a byte, of an address family for which the system does not report this.

    The socket reverts to `socket.socket` when the first byte is read, or when its descriptor is requested, because a caller could
    then read without this class.
    """

    __slots__ = ()

    def recv(self, *args: Any) -> Any:
        return self._heard(super().recv(*args))

    def recv_into(self, *args: Any, **kwargs: Any) -> Any:
        return self._heard(super().recv_into(*args, **kwargs))

    def recvmsg(self, *args: Any) -> Any:
        return self._heard(super().recvmsg(*args))

    def fileno(self) -> int:
        return self._heard(super().fileno())  # type: ignore[no-any-return]

    def detach(self) -> int:
        return self._heard(super().detach())  # type: ignore[no-any-return]

    def _heard(self, result: Any) -> Any:
        self.__class__ = socket.socket  # type: ignore[assignment]
        return result


# --- stalled peers ---------------------------------------------------------------------------------------------------


def limit_stalls(listener: Any, accept: Callable[[], tuple[Request, Any]], seconds: float) -> Callable[[], tuple[Request, Any]]:
    """Limit how long blocking sends on the listener's connections may stall; return the function to accept with from now on.

    A blocking send that has sent nothing for `seconds` fails with EAGAIN. Source: socket(7), SO_SNDTIMEO. Internet connections
    inherit the option from the listener; for others the returned function sets it.
    """
    if os.name != "posix":
        return accept
    seconds = min(seconds, LONGEST)
    with contextlib.suppress(OSError, AttributeError):  # closed, or not a socket: the accept will report it
        limit_sends(listener.socket, seconds)
    if getattr(listener.socket, "family", None) in _INET:
        return accept

    def accept_limited() -> tuple[Request, Any]:
        request, client_address = accept()
        with contextlib.suppress(OSError, AttributeError):
            limit_sends(request, seconds)
        return request, client_address

    return accept_limited
