"""What only some parts and handlers can do, each a Protocol of its own. Looked up when a server is composed, never on a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from socketkit.seams.types import Request

if TYPE_CHECKING:
    from socketkit.seams.dispatchers import Watcher
    from socketkit.seams.limits import Limits


class Adapts(Protocol):
    """Power of a live dispatcher: it gives handlers a request of its own making, such as a green socket."""

    def adapt(self, request: Request, /) -> Request:
        """Return the request the server shall use instead; takes over the one passed in. Called right after accept."""
        ...


class Narrows(Protocol):
    """Power of a live dispatcher: it has a bound of connections of its own."""

    def narrow(self, limits: Limits, /) -> Limits:
        """Return the limits that shall be in force, given those of the server. Called whenever an intake is about to be opened."""
        ...


class Cuts(Protocol):
    """Power of a simple live dispatcher that runs each request in another process: it can end one of them."""

    def cut(self, request: Request, /) -> None:
        """End this request, without waiting for it, because its time is over. Called in the thread that serves."""
        ...


class Forces(Protocol):
    """Power of a live dispatcher: it can end running requests by more than their sockets."""

    def force(self) -> None:
        """End what still runs, without waiting for it. Called once, when a drain's deadline has passed."""
        ...


class Shares(Protocol):
    """Power of a simple live dispatcher: processes that it forks have copies of the listeners for a moment."""

    def unshare(self) -> None:
        """Wait until they have not: whoever is in the queue of a copy when the last one is closed is reset.

        Called in the thread that serves, before the queue is taken for the last time and the listeners are closed.
        """
        ...


class Inline(Protocol):
    """Power of a simple live dispatcher: `dispatch` runs the handler in the calling thread, which is deaf meanwhile."""

    inline: bool


class Watches(Protocol):
    """Power of a simple live dispatcher: it wants to be told of descriptors by the loop that feeds it."""

    def attach(self, loop: Watcher | None, /) -> None:
        """Take the loop, in the serving thread before the first request; None when it has ended and watches nothing any more."""
        ...
