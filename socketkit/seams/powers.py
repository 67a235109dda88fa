"""What only some parts and handlers can do, each a Protocol of its own. Looked up when a server is composed, never on a request."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from socketkit.seams.parking import Parking
from socketkit.seams.types import Request

if TYPE_CHECKING:
    from socketkit.seams.dispatchers import Watcher
    from socketkit.seams.limits import Limits


class Parks(Protocol):
    """Power of a live dispatcher: connections wait in its intake, without a thread, until there is something to read."""

    parking: Parking | None


class RunsInPlace(Protocol):
    """Power of a live dispatcher that drives: each unit's handler runs in the thread that calls the unit.

    The server then goes from the unit straight to the handler, unless a program overrides a step in between. Leave it out, or false,
    where `dispatch` hands the request to another thread, process or event loop.
    """

    runs_in_place: bool


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


# --- of recipes ------------------------------------------------------------------------------------------------------


class Requires(Protocol):
    """Trait of any recipe: it needs something of the platform; `socketkit.composition.capabilities.FEATURES` has the names."""

    requires: Collection[str]


class Nests(Protocol):
    """Trait of a recipe that holds another part of its kind, as `prefork` does; text gives it after a slash."""

    inner: Any


class ForksWorkers(Protocol):
    """Trait of a dispatcher's recipe: it forks processes that serve, and so cannot be nested in another one that does.

    processes: how many there are; each has its share of the limits.
    """

    forks_workers: bool
    processes: int


class RunsAsync(Protocol):
    """Trait of a dispatcher's recipe: it awaits handlers whose `is_async` is true."""

    runs_async: bool


class Kinds(Protocol):
    """Trait of a dispatcher's recipe that does not run every kind of request."""

    kinds: Collection[str]


class Checks(Protocol):
    """Trait of a dispatcher's recipe: it does not run every handler."""

    def check(self, handler: Any, /) -> None:
        """Called when a server is composed. Raises: IncompatibleError, with a remedy."""
        ...


class Located(Protocol):
    """Trait of a transport's recipe: the place in its URL is more than one value."""

    @classmethod
    def locate(cls, text: str, /) -> dict[str, Any]:
        """Return the fields that the text between ``://`` and ``?`` gives. Raises: ValueError with one sentence."""
        ...


class ReplacesSocket(Protocol):
    """Trait of a layer's recipe: handlers get another object in place of the socket."""

    replaces_socket: bool


# --- of handlers -----------------------------------------------------------------------------------------------------


class SpeaksFirst(Protocol):
    """Trait of a handler: it starts at once, and does not wait for the client's first byte."""

    speaks_first: bool


class TakesKinds(Protocol):
    """Trait of a handler that does not take every kind of request: ``{"stream"}`` or ``{"datagram"}``."""

    request_kinds: Collection[str]


class IsAsync(Protocol):
    """Trait of a handler: its `handle` is a coroutine, which a dispatcher with `RunsAsync` awaits."""

    is_async: bool
