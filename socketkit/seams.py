"""The seams: the few Protocols on which everything that can be replaced is replaced.

A *recipe* is the configuration of one part: a frozen attrs class, comparable and printable, with no socket and no thread in it.
A *live part* is what a recipe makes when a server starts; it owns resources and has `close()`.
Conform by shape; do not inherit from these classes. A power that only some parts have is a Protocol of its own (`Adapts`, `Narrows`, `Cuts`,
`Forces`, `Shares`, `Watches`), looked up once, when a server is composed, and never on a request.

Times are float seconds, deadlines are on `time.monotonic()`, and None means without limit.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from socketkit.limits import Limits
    from socketkit.stats import DrainReport, Stats

Request: TypeAlias = Any
"""A connected socket (stream), or `(data, socket)` (datagram), as in the standard library's `socketserver`."""

Clock: TypeAlias = Callable[[], float]
"""Returns seconds that only ever grow, as `time.monotonic` does. One that can be put forward, for tests, also has `follow(callback)`, and
calls back whenever that is done: see `socketkit.testing.FakeClock`."""

Address: TypeAlias = Any
"""What `accept` or `recvfrom` calls the peer: (host, port), four fields for IPv6, a path or "" or None for Unix sockets."""

Unit: TypeAlias = Callable[[], object]
"""A unit of work: calling it runs one request from verification to close, in the calling thread. It does not raise `Exception`."""

Kind: TypeAlias = Literal["stream", "datagram"]

Seconds: TypeAlias = Annotated[float, "seconds"]
"""A duration: a plain number in Python, also ``500ms``, ``30s`` or ``5m`` where a part is given as text."""


# --- transports ------------------------------------------------------------------------------------------------------


class Transport(Protocol):
    """Recipe: where requests come from.

    `kind` says what its requests are. `requires` names what the platform must have (see `socketkit.capabilities`).
    A recipe whose URL is more than one value may also have a class method `locate(text) -> dict`, which turns the part of the URL
    between ``://`` and ``?`` into its fields; without one the text fills the first field.
    """

    @property
    def kind(self) -> Kind:
        """What its requests are; an attribute of the class will do."""
        ...

    @property
    def url(self) -> str:
        """The place to listen on, as a user would type it."""
        ...

    def open(self) -> Listener:
        """Create, bind and activate the socket, in the thread that starts the server.

        Raises: ListenError, after closing whatever was opened.
        """
        ...


class Listener(Protocol):
    """Live transport: hands over one request at a time and knows nothing of threads.

    Used by one thread at a time. `socket` is the listening socket, or None for a transport without one. A listener of datagrams may have
    an attribute `dropped`, which any thread reads: how many were lost before they could be taken, None if that is not known.
    """

    socket: Any
    url: str

    @property
    def address(self) -> Address:
        """Where it listens, as `getsockname` gives it."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a request waits; -1 once closed."""
        ...

    def accept(self) -> tuple[Request, Address]:
        """Return the next request and who sent it; the caller owns the request.

        Never blocks. A stream request offers `shutdown(how)` and `close()`; a datagram is a tuple and needs no closing. One that
        is longer than the listener's `max_packet_size`, if it has that attribute, was cut, and is refused.
        Raises: BlockingIOError when nothing waits; any other OSError goes through the table of `socketkit.loop`.
        """
        ...

    def close(self) -> None:
        """Release the socket and its path. Legal twice."""
        ...


class Layer(Protocol):
    """Recipe of a step between accept and handler, on stream connections.

    Called by the thread that is about to run the handler, never on the accept path, so it may block within its own deadline. One
    that returns another object in place of the socket, such as a TLS socket, says so with an attribute `replaces_socket = True`.
    """

    def wrap(self, request: Request, client_address: Address) -> tuple[Request, Address]:
        """Return the request and the peer as the next layer, or the handler, shall see them.

        Raises: OSError or ValueError to end the connection; the caller closes the request it passed in.
        """
        ...


# --- dispatchers -----------------------------------------------------------------------------------------------------


class Dispatcher(Protocol):
    """Recipe: where and when a handler runs.

    `start` returns one of two shapes. A `Dispatch` is called once for each request by the server's own loop. A `Drive` is given the
    means to take requests and turns the crank itself, with threads, processes or an event loop of its own. Neither binds, parses
    or closes a listener, and neither takes a request that it has no room to run.
    """

    def start(self, work: Work, /) -> Dispatch | Drive:
        """Return the live part for one server. Called by the thread that starts it, before anything is served."""
        ...


class Work(Protocol):
    """What a server gives to its live dispatcher: the request's whole life after it was taken."""

    @property
    def handler(self) -> Any:
        """What handles the server's requests just now, without a `functools.partial` around it."""
        ...

    def run(self, request: Request, client_address: Address, /) -> None:
        """Run one request here and now: layers, handler, errors, close, account. Call it in the thread or process that serves it.

        Raises no `Exception`; what else comes out of it is meant for the process.
        """
        ...

    def run_alone(self, request: Request, client_address: Address, /) -> str:
        """As `run`, in a process just forked for it: first closes what is the parent's. Return the outcome, for `settle` there."""
        ...

    def run_async(self, request: Request, client_address: Address, /) -> Coroutine[Any, Any, None]:
        """As `run`, for a handler whose attribute `is_async` is true: a coroutine for the event loop of the thread that serves."""
        ...

    def release(self, request: Request, /) -> None:
        """Close this process's copy of a request that another process serves."""
        ...

    def forget(self) -> None:
        """Close this process's copies of the listeners and of the loop's descriptors, in a child that serves no requests itself."""
        ...

    def settle(self, request: Request, outcome: str, /) -> None:
        """Account for a request that another process served; outcomes as in `socketkit.stats.Ledger`. `run` accounts for its own."""
        ...

    def branch(self) -> Branch:
        """Return what makes a process that is about to be forked serve on its own. Call it before the fork, once for each."""
        ...


class Branch(Protocol):
    """One more process that serves: made before the fork, and used on both sides of it."""

    def enter(
        self, dispatcher: Dispatcher | None, opened: Callable[[Any], None], settled: Callable[[int], None] | None = None, /
    ) -> Serving:
        """In the child, once: be a server of one's own, with that dispatcher (None: the usual one), and nothing of the parent's.

        The child then calls `run` and `drain` of what this returns, as a lifecycle does, and leaves the process.
        opened: called with the intake (a `socketkit.loop.Intake`) when it is about to be used. settled: called with the number of
        requests that have ended, after each, in the thread that ran it.
        Raises: what starting the dispatcher raises.
        """
        ...

    def begun(self, worker: object, /) -> None:
        """In the parent: the child takes requests. Tells the observers; `worker` is what they get to see."""
        ...

    def stats(self) -> Stats:
        """In the parent: return what the child has done so far. Also valid once it is dead."""
        ...

    def close(self, worker: object = None, reason: str = "", /) -> None:
        """In the parent, once the child has ended: take over its counts; what it had in work died. A reason goes to the observers."""
        ...


class Dispatch(Protocol):
    """Live dispatcher, simple shape: called for each request by the thread that took it."""

    def dispatch(self, request: Request, client_address: Address, /) -> None:
        """See that `Work.run` is called with the request, now or soon, here or elsewhere.

        Raises: OSError, RuntimeError when it cannot (no more threads, no more processes); the caller refuses the request.
        """
        ...

    def wait(self, timeout: float | None, /) -> bool:
        """Wait until all that was dispatched has ended, for `timeout` seconds at most; return whether it has."""
        ...

    def close(self) -> None:
        """Release threads and descriptors that do not depend on running requests. Legal twice."""
        ...


class Drive(Protocol):
    """Live dispatcher, powerful shape: it takes its requests itself."""

    def drive(self, open_intake: OpenIntake, /) -> None:
        """Take units and run them until the intake says `stopped`; called by, and keeps, the thread that serves.

        `open_intake` is called in the process that will use the intake: after a fork, never before one. A dispatcher whose
        processes serve on their own (`Work.branch`) opens one for itself that is not `listening`: it only says when to stop.
        Raises: whatever ended serving early.
        """
        ...

    def wait(self, timeout: float | None, /) -> bool:
        """As `Dispatch.wait`, after `drive` has returned and in the same thread."""
        ...

    def close(self) -> None:
        """As `Dispatch.close`."""
        ...


class OpenIntake(Protocol):
    """How a driving dispatcher comes by its intake."""

    def __call__(self, *, listening: bool = True) -> Intake:
        """Return a new intake; one that is not listening hands out no units."""
        ...


class Watcher(Protocol):
    """The loop's side for descriptors that are no requests. Only for the thread that serves, or that holds the baton."""

    def watch(self, fileno: int, readable: Callable[[], None], /) -> None:
        """Call `readable` whenever the descriptor is readable."""
        ...

    def unwatch(self, fileno: int, /) -> None:
        """Forget the descriptor; do this before closing it."""
        ...

    def hold(self) -> None:
        """Take no further request: no listener is polled, and clients wait in the kernel's queue."""
        ...

    def release(self) -> None:
        """Take requests again."""
        ...


class Intake(Watcher, Protocol):
    """What a driving dispatcher is given: wait for something to do, take it, run it; be told when to stop.

    The dispatcher that opened it closes it, with `with`, when no thread is inside `take` any more. One thread at a time takes, the
    one that holds the baton; `stop` and `on_stop` are for every thread. An event loop watches `fileno()`, which is readable
    whenever `take(0)` might return a unit, and also calls `take(0)` after `due()` seconds of silence.
    """

    stopped: bool

    def __enter__(self) -> Self:
        """Return the intake."""
        ...

    def __exit__(self, *error: object) -> None:
        """Close the intake."""
        ...

    def take(self, timeout: float | None = None, /) -> Unit | None:
        """Return the next unit; None when stopped, or when nothing came within `timeout` seconds."""
        ...

    def fileno(self) -> int:
        """Return the descriptor of the selector itself (epoll or kqueue)."""
        ...

    def due(self) -> float | None:
        """Return the seconds until `take` has something to do that no descriptor announces."""
        ...

    def woken_by_signals(self) -> AbstractContextManager[None]:
        """Return a block in which a signal makes the descriptor readable, if it is entered in the main thread.

        Python runs a signal's handler only between two instructions: a wait that began just too early would not end.
        """
        ...

    def stop(self) -> None:
        """Stop the intake, because of an error that `drive` is going to raise. Otherwise it is the server's to stop."""
        ...

    def on_stop(self, callback: Callable[[], None], /) -> None:
        """Have `callback` called when the intake is stopped, for threads that are not in `take`. It runs wherever `stop` is called,
        a signal handler included, so it may do no more than `socketkit.loop.Wakeup.wake` does.
        """
        ...


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


# --- lifecycles ------------------------------------------------------------------------------------------------------


class Lifecycle(Protocol):
    """Recipe: how serving starts, stops and drains. It neither accepts nor runs handlers.

    One with an attribute `drain`, seconds or None, thereby says how long closing a server waits for running requests. One with an
    attribute `lame_duck`, seconds, has a server that is told to stop go on for so long before `Serving.run` returns.
    """

    def serve(self, serving: Serving, /) -> DrainReport | None:
        """Run the server once, from `serving.run()` to the last request, in the calling thread.

        Returns: the report of the drain, or None where there was none.
        """
        ...


class Serving(Protocol):
    """One run of a server, as a lifecycle sees it."""

    def run(self) -> None:
        """Take requests until stopped; return then. Raises what ended serving early."""
        ...

    def drain(self, seconds: float | None, /, *, queue: bool = True) -> DrainReport:
        """End it well: serve what has come by now, close the listeners and who is idle, let running requests finish for `seconds`,
        then force them; release everything.

        queue: what has come includes what the kernel has queued. False where somebody else goes on to serve the same listeners.
        """
        ...

    def stop(self, drain: float | None = None, /) -> None:
        """Ask for the end of `run`, or shorten the drain to `drain` seconds from now.

        Legal in a signal handler, from any thread and at any time: it stores a number and writes one byte. With 0 everything is
        forced at once; otherwise `run` first goes on for the `lame_duck` of the lifecycle, and is not ready any more meanwhile.
        """
        ...

    def on_ready(self, callback: Callable[[], None], every: float | None = None, /) -> None:
        """Have `callback` called when requests are taken for the first time, and then every so many seconds for as long as they are.

        It is called by whoever takes requests, so that it is not called while nobody can. Call this before `run`.
        """
        ...

    def hand_over(self) -> None:
        """As `stop`, for listeners that somebody else takes requests from by now: what waits in the kernel is left to him.

        There is no lame duck. Then call `drain` as ever. Legal wherever `stop` is.
        """
        ...


# --- seeing inside ---------------------------------------------------------------------------------------------------

EVENTS: Mapping[str, str] = {
    "server_started": "(server): the listeners are open and the loop is about to take its first request",
    "server_stopping": "(server): stop was asked for",
    "server_stopped": "(server, report): nothing of the run is left; report is a DrainReport or None",
    "request_accepted": "(server, request, client_address): a connection was accepted or a datagram received",
    "request_finished": "(server, client_address, seconds): a handler returned",
    "request_failed": "(server, client_address, error): a handler, a layer or a hook raised",
    "request_refused": "(server, client_address, reason): turned away before a handler saw it",
    "accept_paused": "(server, url, error, seconds): the system refused a descriptor or memory; that listener rests",
    "accept_resumed": "(server, url, failures): a listener that rested takes requests again",
    "worker_started": "(server, worker): a dispatcher started a process that serves more than one request",
    "worker_died": "(server, worker, reason): one of those ended without being asked to",
}
"""What an observer may implement: any object with any of these methods. Each is called by the thread in which the event happens,
must return quickly, and may raise without harm (logged once per observer and event)."""
