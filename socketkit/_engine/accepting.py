"""Accepting from listeners: how accept(2) errors are handled, and which listeners are paused and why."""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable, Collection, Iterable

from socketkit._system.logs import Log

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Literal

    from socketkit._engine.intake import Intake
    from socketkit._engine.poller import Poller
    from socketkit.seams import Refusal, Unit

    Verdict = Literal["retry", "pause", "fatal"]

log = Log("socketkit.loop")

_PEERS_FAULT = (
    "ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR ENETDOWN ENETUNREACH ENONET ENOPROTOOPT EOPNOTSUPP EPERM "
    "EPIPE EPROTO ETIMEDOUT"
)
ACCEPT_ERRORS: dict[int, Verdict] = {
    **{getattr(errno, name): "retry" for name in _PEERS_FAULT.split() if hasattr(errno, name)},
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM), "pause"),
    **dict.fromkeys((errno.EBADF, errno.EINVAL, errno.ENOTSOCK), "fatal"),
}
"""What an error of accept(2) or recvfrom(2) means for its listener. An errno missing here means "pause".

retry: the error concerns one peer; take the next. pause: the system lacks a resource; pause, then try again.
fatal: the descriptor is no longer a listener. Source: accept(2), "Error handling"; EPERM comes from a firewall.
"""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds to pause after a "pause" error: doubles from the shortest to the longest, and resets on success."""

RETRIES_IN_A_ROW = 100
"""A listener is paused after this many "retry" errors in a row: a repeating error does not concern a single peer."""

HELD, NO_ROOM, FAILING, RETIRED = "held", "no room", "failing", "retired"
"""Why a listener is paused: the dispatcher holds all of them; a limit leaves no room; the system lacks a resource; it is the end."""


def verdict(error: OSError) -> Verdict:
    """Look the error up in `ACCEPT_ERRORS`. An error without a system errno comes from a handshake, so it concerns one peer."""
    if error.errno is None or isinstance(error, TimeoutError) or type(error).__module__ == "ssl":
        return "retry"
    return ACCEPT_ERRORS.get(error.errno, "pause")


class NoRoomError(BlockingIOError):
    """Raised by `Source.take` when a limit leaves no room: pause these sources until `Accepting.resume`."""

    def __init__(self, sources: Collection[Source]) -> None:
        super().__init__()
        self.sources = sources


class TurnedAwayError(Exception):
    """A limit turns a client away, whose address is only known now that a layer has found it. reply: what to send it."""

    def __init__(self, reason: Refusal, reply: bytes) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class Source:
    """A listener as its intake sees it. Subclasses define `fileno` and `take`.

    Attributes:
        url: its URL, for logs.
        once: take only one unit per poll, because a second `take` might block.
        counted: its requests are connections, which limits count.
        knows_clients: the address of a request is its client's, and not only that of a proxy.
        intake: the intake that takes from it; set when that is opened.
    """

    url: str = ""
    once: bool = False
    counted: bool = True
    knows_clients: bool = True
    intake: Intake

    registered = -1  # the descriptor in the poller, or -1. Only `Accepting` writes this and the attributes below.
    paused_for: frozenset[str] = frozenset()  # of the four reasons; the source is watched while it is empty
    retries = 0  # "retry" errors in a row
    failures = 0  # "pause" errors since the last success
    delay = 0.0  # seconds of the last pause
    troubled = False  # whether an error has occurred since the last success

    def fileno(self) -> int:
        """Return the descriptor that is readable when `take` has something, or -1 when closed."""
        raise NotImplementedError

    def take(self) -> Unit | None:
        """Return the next unit; None when a request was taken but leaves nothing to run.

        Raises: BlockingIOError when no request waits; NoRoomError; OSError.
        """
        raise NotImplementedError

    def paused(self, error: OSError, seconds: float) -> None:
        """Called when `error` has paused this source for `seconds`."""

    def resumed(self, failures: int) -> None:
        """Called when this source delivers again, after `failures` failed attempts."""


class Accepting:
    """The sources of one intake. Used only by the thread that takes."""

    def __init__(self, sources: Iterable[Source], poller: Poller, call_later: Callable[[float, Callable[[], object]], None]) -> None:
        self.sources = list(sources)
        self.ready: deque[Source] = deque()  # reported readable, and not yet exhausted
        self._poller = poller
        self._call_later = call_later
        for source in self.sources:
            self._watch(source)

    def pause(self, reason: str, sources: Collection[Source] | None = None) -> None:
        """Stop watching these sources, None: all, until `resume` takes the reason away. Clients wait in the kernel's queue."""
        for source in self._own(sources):
            source.paused_for |= {reason}
            self._ignore(source)

    def resume(self, reason: str, sources: Collection[Source] | None = None) -> None:
        """Take the reason away, and watch the sources that have no other reason to be paused."""
        for source in self._own(sources):
            source.paused_for -= {reason}
            self._watch(source)

    def failed(self, source: Source, error: OSError) -> None:
        """Handle an error raised while taking from `source`, as `ACCEPT_ERRORS` says.

        Raises: the error itself, if the descriptor is no longer a listener.
        """
        source.troubled = True
        what = "fatal" if source.fileno() == -1 else verdict(error)
        if what == "fatal":
            self._ignore(source)
            raise error
        if what == "retry":
            source.retries += 1
            log.debug("%s: a client left before it was accepted: %s", source.url, error, about=source.url)
            if source.retries < RETRIES_IN_A_ROW:
                return
        source.delay = min(source.delay * 2 or SHORTEST_PAUSE, LONGEST_PAUSE)
        source.failures += 1
        source.retries = 0
        resting = "%s: cannot accept: %s; trying again in %.1f s (failure %d in a row)"
        log.warning(resting, source.url, error, source.delay, source.failures, about=source.url, few=1)
        source.paused(error, source.delay)
        self.pause(FAILING, [source])
        self._call_later(source.delay, lambda: self.resume(FAILING, [source]))

    def recovered(self, source: Source) -> None:
        """Record a success after errors."""
        source.troubled, source.retries = False, 0
        if source.failures:
            log.info("%s: accepting again after %d failures", source.url, source.failures, about=source.url)
            source.resumed(source.failures)
            source.failures, source.delay = 0, 0.0

    def _own(self, sources: Collection[Source] | None) -> list[Source]:
        """Return those of the sources that are this intake's: a drain's has none, but hears of room for those of the one before."""
        return self.sources if sources is None else [source for source in self.sources if source in sources]

    def _watch(self, source: Source) -> None:
        if source.registered == -1 and not source.paused_for:
            source.registered = source.fileno()
            self._poller.watch(source.registered, source)

    def _ignore(self, source: Source) -> None:
        with contextlib.suppress(ValueError):
            self.ready.remove(source)
        if source.registered != -1:
            self._poller.forget(source.registered)
            source.registered = -1
