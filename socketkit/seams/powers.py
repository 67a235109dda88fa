"""Optional abilities of parts and handlers, one Protocol each. Looked up when a server is composed, never on a request."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from socketkit.seams.parking import Parking
from socketkit.seams.transports import Layer
from socketkit.seams.types import Address, Request

if TYPE_CHECKING:
    from datetime import datetime

    from socketkit.seams.dispatchers import Dispatcher, Watcher
    from socketkit.seams.limits import Limits
    from socketkit.seams.transports import Handshake, Listener


class Parks(Protocol):
    """Power of a live dispatcher: connections wait in its intake, without a thread, until they are readable."""

    parking: Parking | None


class RunsInPlace(Protocol):
    """Power of a driving dispatcher: each unit's handler runs in the thread that calls the unit.

    The server then goes straight from the unit to the handler, unless a program overrides a step in between. Omit it, or set it to
    false, if `dispatch` passes the request to another thread, process or event loop.
    """

    runs_in_place: bool


class Adapts(Protocol):
    """Power of a live dispatcher: it replaces the request that handlers get, for example with a green socket."""

    def adapt(self, request: Request, /) -> Request:
        """Return the request for the server to use instead, and own the one passed in.

        Called right after accept, in the thread that accepts. Called again with what a layer, such as TLS, has put in the place of the
        request; that is where the request runs, which may be a thread of the server's own.
        """


class Awaits(Protocol):
    """Power of a live dispatcher: it waits for clients in its own way, where poll(2) would hold up other requests of the same thread."""

    def until_ready(self, request: Request, seconds: float | None, /, *, sends: bool) -> bool:
        """Wait until the connection can receive, or with `sends` until it can send; return False after `seconds` (None: never).

        Called where the request runs, while one of its layers waits for the client. It has to return when another thread shuts down
        the connection. Raises: OSError or ValueError if it is closed.
        """


class Narrows(Protocol):
    """Power of a live dispatcher: it has its own bound on connections."""

    def narrow(self, limits: Limits, /) -> Limits:
        """Return the limits to enforce, given the server's. Called before each intake is opened."""


class Cuts(Protocol):
    """Power of a simple live dispatcher that runs each request in another process: it can end a single request."""

    def cut(self, request: Request, /) -> None:
        """End a request that has timed out, without waiting for it. Called in the serving thread."""


class Forces(Protocol):
    """Power of a live dispatcher: it can end requests by more than shutting down their sockets."""

    def force(self) -> None:
        """End the requests that still run, without waiting for them. Called once, when a drain's deadline has passed.

        A dispatcher that keeps requests in a queue gives these up: it calls `Work.settle` and `Work.release` for each.
        """


class Lingers(Protocol):
    """Power of a driving dispatcher: its requests can go on only in the thread that called `drive`, as greenlets do."""

    def linger(self) -> Callable[[], None]:
        """Return what lets the requests of this thread go on, and returns when they have ended.

        Called after a run without a drain, in the thread of `Server.start`: it then calls what this returns, as the last thing that it
        does. Meanwhile the server counts as stopped, and may serve again in another thread. From this call on, `wait` waits for these
        requests in any thread, and `close` ends them. In a thread of the program's own the server does not call it, because the program
        expects that thread back: there the requests go on only inside `wait`, or when the same thread serves again.
        """


class Shares(Protocol):
    """Power of a simple live dispatcher: processes that it forks briefly hold copies of the listeners."""

    def unshare(self) -> None:
        """Wait until no forked process holds a copy: closing the last copy resets the connections still in its queue.

        Called in the serving thread, before the queue is emptied for the last time and the listeners are closed.
        """


class Inline(Protocol):
    """Power of a simple live dispatcher: `dispatch` runs the handler in the calling thread, which takes no requests meanwhile."""

    inline: bool


class Connects(Protocol):
    """Power of a listener: the program itself can connect to it, with `socketkit.Server.connect`."""

    def connect(self) -> socket.socket:
        """Return a connected, blocking client's socket, which the caller owns. From any thread. Raises: OSError."""


class Copies(Protocol):
    """Power of a listener with a socket: listeners in other interpreters of this process can take requests from the same queue."""

    def copier(self) -> Callable[[socket.socket], Listener]:
        """Return a picklable function that, called there with a duplicate of the socket, returns a listener that owns it.

        It leaves everything else, such as the path of a Unix socket, to this listener.
        """


class Watches(Protocol):
    """Power of a simple live dispatcher: it lets the server's loop watch descriptors for it."""

    def attach(self, loop: Watcher | None, /) -> None:
        """Store the loop. Called in the serving thread before the first request, and with None once the loop has ended."""


class RenewsWorkers(Protocol):
    """Power of a live dispatcher whose own processes serve: it passes on a request to renew the layers."""

    def renew_workers(self) -> None:
        """Have `Serving.renew` called in each of the processes, without waiting for it. Called in the serving thread."""


class Renews(Protocol):
    """Power of a live layer: while the server serves, it can replace what it started with, for example by what its files say now."""

    @property
    def renew_every(self) -> float | None:
        """Seconds between two calls of `renew`. None: it is called when the server begins to take requests, and on `Serving.renew`.

        An attribute is enough.
        """

    def renew(self) -> None:
        """Look for something new, and use it for connections that begin from now on. All others keep what they have.

        One call at a time, in a thread that takes no requests; under a dispatcher that forks, in the loop of the process that forks, so
        that a child is never forked in the middle. Worker processes call it on their own copies. An error is logged, and nothing else.
        """


class Expires(Protocol):
    """Power of a live layer: it knows until when what it uses is valid, for `Stats.expiries`."""

    def expiries(self) -> Mapping[str, datetime]:
        """Return by name, such as that of a file, the moment when each expires, with its time zone. From any thread; must not block."""


# --- of recipes ------------------------------------------------------------------------------------------------------


class ShakesHands(Protocol):
    """Power of a layer, in place of `wrap`: its connections wait for their clients without a thread."""

    def begin(self, request: Request, client_address: Address, /) -> Handshake:
        """Return the handshake of a new connection. Nothing is read yet. The request does not block (its timeout is 0) until the end.

        Raises: OSError or ValueError to end the connection.
        """


class BeginsInLoop(Protocol):
    """Power of a layer with `begin` that replaces the socket: for a handler with `TakesLoopConnections`, asyncio's loop shakes hands.

    It has to be the last layer then. begins_in_loop: a trait of its recipe. `begin_in_loop` is a method of its live part, if it has one.
    """

    begins_in_loop: bool

    async def begin_in_loop(self, connection: Any, /) -> None:
        """Shake hands on a connection that the running loop has just opened; for TLS, ``await connection.encrypt(context)`` does it.

        The connection has the attributes `request`, the socket; `below`, the loop's transport of it, of which `connection` itself is the
        protocol; and `transport`, which must be the one for the handler in the end, and paused. The client has sent something before.
        When the time for the handshake is over, the socket is shut down; a drain may cancel the call. The caller closes the connection.
        Raises: OSError or ValueError to end the connection, with a reason for the log.
        """


class Starts(Protocol):
    """Power of a layer's recipe, in place of `wrap`: it has a live part, which keeps something between connections."""

    def start(self) -> Layer | ShakesHands:
        """Return the live part. Each server calls this once, when it first opens. Raises: ConfigError."""


AnyLayer: TypeAlias = Layer | ShakesHands | Starts
"""The shapes of a layer's recipe."""


class Requires(Protocol):
    """Trait of any recipe: it needs platform features; `socketkit.composition.capabilities.FEATURES` lists the names."""

    requires: Collection[str]


class Nests(Protocol):
    """Trait of a recipe that contains another part of the same kind, as `prefork` does; in text it follows a slash."""

    inner: Any


class ForksWorkers(Protocol):
    """Trait of a dispatcher's recipe: it forks serving processes, so it cannot be nested in another recipe that does.

    processes: the number of processes; each gets its share of the limits.
    """

    forks_workers: bool
    processes: int


class RunsInterpreters(Protocol):
    """Trait of a dispatcher's recipe: other interpreters of this process serve, each with its share of the limits.

    interpreters: their number.
    """

    @property
    def interpreters(self) -> int:
        """See above. An attribute is enough."""


class ForksRequests(Protocol):
    """Trait of a dispatcher's recipe: each request runs in a child process, so this process never learns what its layers find out."""

    forks_requests: bool


class StaysInProcess(Protocol):
    """Trait of a transport's recipe: no other process and no other interpreter can serve its requests.

    So it is refused under a dispatcher with one of the traits `ForksWorkers`, `ForksRequests` and `RunsInterpreters`.
    """

    stays_in_process: bool


class Daemonizes(Protocol):
    """Trait of a dispatcher's recipe: it can run requests in daemon threads, which do not keep the interpreter from exiting."""

    def daemonized(self) -> Dispatcher:
        """Return the recipe to use for a classic server whose `daemon_threads` is true."""


class BoundsHandlers(Protocol):
    """Trait of a dispatcher's recipe: it runs a limited number of handlers at once."""

    def max_handlers(self, handler: Any, /) -> int | None:
        """Return the most handlers at once, in all its processes together; None: not known, or no limit.

        handler: the handler of the server, out of any `functools.partial`. A dispatcher with an event loop may have room for more
            asynchronous handlers than for blocking ones.
        """


class RunsAsync(Protocol):
    """Trait of a dispatcher's recipe: it awaits handlers whose `is_async` is true."""

    runs_async: bool


class UsesAsyncLibrary(Protocol):
    """Trait of a dispatcher's recipe with `RunsAsync`, and of a handler with `IsAsync`: whose event loop awaits the handler.

    async_library: the name of the library, such as ``"trio"``, which is also that of the dispatcher; without it, ``"asyncio"``. A server
        is refused if its dispatcher and its handler differ.
    """

    @property
    def async_library(self) -> str:
        """See above. An attribute is enough."""


class Kinds(Protocol):
    """Trait of a dispatcher's recipe: it runs only these kinds of request."""

    kinds: Collection[str]


class Checks(Protocol):
    """Trait of a dispatcher's recipe: it accepts only some handlers."""

    def check(self, handler: Any, /) -> None:
        """Check the handler when a server is composed. Raises: IncompatibleError, with a remedy."""


class Located(Protocol):
    """Trait of a transport's recipe: the place in its URL holds more than one value. Without it, the place fills the first field."""

    @classmethod
    def locate(cls, text: str, /) -> dict[str, Any]:
        """Return the fields for the text between ``://`` and ``?``. Raises: ValueError with a one-sentence message."""


class OpensSeveral(Protocol):
    """Trait of a transport's recipe: it may listen in several places, such as all addresses of a name, each with its own listener.

    A recipe that wraps another transport opens it with `socketkit.seams.open_listeners`, which uses this trait if it is there.
    """

    def open_all(self) -> Sequence[Listener]:
        """As `Transport.open`, which the server then does not call: return at least one listener.

        Raises: ListenError, after closing all that it has opened.
        """


class ReplacesSocket(Protocol):
    """Trait of a layer, of its recipe and of its live part: handlers get another object, such as a TLS socket, instead of the socket.

    A client that a limit turns away before this layer gets no reply, because it could not read one.
    """

    replaces_socket: bool


class Upgrades(Protocol):
    """Trait of a layer's recipe: if true, connections pass it when their handler calls `upgrade_tls`, and not before the handler begins.

    Only the last layer of a transport can. `Limits.handshake` bounds it from that call on.
    """

    upgrade: bool


class Answers(Protocol):
    """Trait of a layer's recipe: it answers each client itself and raises `Answered`, so no handler runs. It has to be the last layer.

    Its transport may carry requests of a kind that the server's handler does not take.
    """

    answers: bool


class NeedsSocket(Protocol):
    """Trait of a layer's recipe: it works on the socket itself, so no layer before it may replace the socket."""

    needs_socket: bool


class NamesClient(Protocol):
    """Trait of a layer, of its recipe and of its live part: the address that it returns is the client's, and the peer is only a proxy.

    Limits that concern peers wait for that address.
    """

    names_client: bool


# --- of handlers -----------------------------------------------------------------------------------------------------


class SpeaksFirst(Protocol):
    """Trait of a handler: it starts at once, without waiting for the client's first byte."""

    speaks_first: bool


class TakesKinds(Protocol):
    """Trait of a handler: it takes only these kinds of request, ``{"stream"}`` or ``{"datagram"}``."""

    request_kinds: Collection[str]


class IsAsync(Protocol):
    """Trait of a handler: its `handle` is a coroutine, which a dispatcher with `RunsAsync` awaits.

    Derive such a handler from `socketkit.AsyncRequestHandler`, which the server awaits.
    """

    is_async: bool


class TakesAnySocket(Protocol):
    """Trait of an asynchronous handler: if true, it reads and writes whatever socket it gets, also an `ssl.SSLSocket`, without blocking.

    Layers such as `tls` then shake hands for it as for a blocking handler.
    """

    @property
    def takes_any_socket(self) -> bool:
        """See above. An attribute is enough."""


class TakesLoopConnections(Protocol):
    """Trait of a handler for asyncio: it takes over a connection on which the event loop has shaken hands for a layer.

    loop_connection: None in the class, which means that the handler uses the request. The server sets it before `setup`, and closes
        it after `finish`. `loop_connection.hand_over(protocol)` gives the connection to an `asyncio.Protocol`.
    """

    loop_connection: Any


class RepliesToMessages(Protocol):
    """Trait of a handler: its replies depend only on a message and the client's address, so they can be computed elsewhere.

    `socketkit.MessageHandler` has it. A handler with the trait gets each reply from `socketkit.seams.messages.reply_of`.
    """

    replies_to_messages: ClassVar[bool]

    def reply(self, message: bytes, client_address: Address, /) -> bytes | None:
        """Return the reply to a message; None: send no reply. Elsewhere, `self` has only the attributes of its class."""
