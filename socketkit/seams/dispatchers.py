"""Where and when handlers run: a dispatcher's recipe, its two live shapes, and what the server gives each of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from socketkit.seams.types import Address, Request, Unit

if TYPE_CHECKING:
    from socketkit.seams.interpreters import PackedReplica
    from socketkit.seams.lifecycles import Serving
    from socketkit.seams.stats import Stats


class Dispatcher(Protocol):
    """Recipe: where and when a handler runs.

    `start` returns one of two shapes. The server's own loop calls a `Dispatch` once per request. A `Drive` runs the loop itself,
    with its own threads, processes or event loop, and takes requests from an intake. Neither binds, parses or closes a listener,
    and neither takes a request that it has no room to run.
    """

    def start(self, work: Work, /) -> Dispatch | Drive:
        """Return the live part for one server. The thread that starts the server calls it before any request is served."""


class Work(Protocol):
    """What a server gives its live dispatcher: everything that happens to a request after it was taken."""

    @property
    def handler(self) -> Any:
        """The server's current handler, without a `functools.partial` around it."""

    def run(self, request: Request, client_address: Address, /) -> None:
        """Run one request to its end: layers, handler, errors, close, ledger. Call it in the thread or process that serves the request.

        Raises no `Exception`. Any other `BaseException` is meant for the process.
        """

    def run_alone(self, request: Request, client_address: Address, /) -> str:
        """As `run`, in a process forked for the request: first close the parent's descriptors. Return the outcome, for its `settle`."""

    def run_async(self, request: Request, client_address: Address, loop: EventLoop | None = None, /) -> Coroutine[Any, Any, None]:
        """As `run`, for a handler whose `is_async` is true: return a coroutine, for a task of its own in the dispatcher's event loop.

        loop: how to wait in that event loop; None: as in one of asyncio, which has to be running where the coroutine is awaited.
        The coroutine contains the request's errors and cancellation, as `run` does. The request runs in the thread that awaits it.
        """

    def release(self, request: Request, /) -> None:
        """Close this process's copy of a request that another process serves."""

    def forget(self) -> None:
        """In a child that serves no requests itself: close its copies of the listeners and of the loop's descriptors."""

    def settle(self, request: Request, outcome: str, /) -> None:
        """Record the outcome (see `socketkit._engine.ledger.Ledger`) of a request that another process served; `run` does so itself."""

    def branch(self) -> Replica:
        """Return a replica for a process or interpreter that is about to begin and will serve on its own. Call it for each one."""


class EventLoop(Protocol):
    """How the server waits in the event loop of a dispatcher that awaits `Work.run_async`, whichever library the loop is of.

    The server calls these methods from the coroutine. The two that wait may be cancelled as that library cancels.
    """

    async def until_ready(self, request: Request, /, *, sends: bool) -> None:
        """Wait until the connection can receive, or with `sends` until it can send; a layer waits for the client.

        It has to return when another thread shuts down the connection. Raises: OSError or ValueError if it is closed.
        """

    async def run_in_thread(self, function: Callable[[], Any], /) -> Any:
        """Call the function in another thread and return its result: it is a layer that blocks. Raises: what the function raises.

        A cancellation meanwhile takes effect after the function has returned, because nothing can interrupt it.
        """

    def is_cancellation(self, error: BaseException, /) -> bool:
        """Return whether the error is nothing but a cancellation that was asked for, such as by a drain at its deadline.

        Such a request ends without a line in the log, and the coroutine returns. Any other exception that no handler should raise, such
        as SystemExit, is logged. Called in the task that was cancelled.
        """


class Replica(Protocol):
    """One more worker that serves on its own: a forked process, or another interpreter of this process."""

    def enter(
        self, dispatcher: Dispatcher | None, opened: Callable[[Any], None], settled: Callable[[int], None] | None = None, /
    ) -> Serving:
        """In a forked child, once: drop the parent's resources and return a run of the child's own server.

        The child then calls `run` and `drain` on it, as a lifecycle does, and exits.
        dispatcher: the one to serve with; None: the usual one.
        opened: called with the intake (a `socketkit._engine.intake.Intake`) just before it is used.
        settled: called with the number that `served` returns, after each request, in the thread that ran it. If it is given, each
            request of a conversation counts, and a conversation that cannot be parked ends with its current request once the run ends.
        Raises: whatever starting the dispatcher raises.
        """

    def pack(self, dispatcher: Dispatcher | None, /) -> PackedReplica:
        """In the parent, for another interpreter: return what enters the replica there. The listeners have to be open. Owner: the caller.

        dispatcher: the one to serve with; None: the usual one.
        Raises: IncompatibleError, which names what cannot be copied; OSError if no descriptor is available.
        """

    def begun(self, worker: object, /) -> None:
        """In the parent: tell the observers that the worker takes requests; `worker` is passed on to them."""

    def stats(self) -> Stats:
        """In the parent: return the worker's statistics so far. Also valid after the worker has died."""

    def served(self) -> int:
        """In the parent: return the number of requests that the worker has ended so far, in a conversation or outside of one."""

    def close(self, worker: object = None, reason: str = "", /) -> None:
        """In the parent, after the worker has ended: add its counts, its unfinished requests as died.

        Observers are told that `worker` died, for this `reason`; or, without a reason, that it has left. None: they are told nothing.
        """


Branch = Replica
"""The old name of `Replica`."""


class Dispatch(Protocol):
    """Live dispatcher, simple shape: the thread that took a request calls it."""

    def dispatch(self, request: Request, client_address: Address, /) -> None:
        """Arrange for `Work.run` to be called with the request, now or soon, in this thread or elsewhere.

        Also called during a drain, for connections that were in the accept queue. It must not wait for other requests: the loop stands
        still meanwhile, and so does a stop. A dispatcher that has no room keeps the request, and gives it up in `Forces.force`; or it
        holds the loop, as one with the power `Watches` can.
        Raises: OSError, RuntimeError when it cannot start a thread or a process; the caller refuses the request.
        """

    def wait(self, timeout: float | None, /) -> bool:
        """Wait up to `timeout` seconds for all dispatched requests to end; return whether they have. None: no limit."""

    def close(self) -> None:
        """Release the threads and descriptors that no running request needs. May be called twice."""


class Drive(Protocol):
    """Live dispatcher, powerful shape: it takes requests itself.

    A unit is called once, and `take` may hand out an equal one again. That of a conversation is handed out for each of its requests, and
    so perhaps while the thread that called it for the request before has not returned from that call yet. A dispatcher that keeps
    something for each call, such as a token of a limiter, must not find it by the unit.

    It may also have the `dispatch` of a `Dispatch`, to run requests elsewhere than where their units are called, such as in tasks of an
    event loop. A unit then calls `verify_request` and `process_request`, which calls `dispatch`, and returns. Whoever calls `Work.run`, or
    awaits `Work.run_async`, closes and settles the request. `Server.handle_request` and a server's own threads call `dispatch` outside
    of `drive`, from any thread: there it returns when the request has ended.
    """

    def drive(self, open_intake: OpenIntake, /) -> None:
        """Take units and run them until the intake is `stopped`. The serving thread calls it and stays inside until then.

        It may be called again on the same live part. A drain calls it a second time to serve the requests that were accepted or in
        the accept queue when stop was requested: that intake has no listeners and stops by itself. A server that is restarted
        without a drain calls it again too. Threads of the previous call may still be inside a handler, so each call starts its
        own threads and gives them its own intake.

        Call `open_intake` in the process that will use the intake: after a fork, never before. A dispatcher whose processes serve
        on their own (`Work.branch`) opens one that is not `listening`, which only tells it when to stop.
        Raises: whatever ended serving early.
        """

    def wait(self, timeout: float | None, /) -> bool:
        """As `Dispatch.wait`, after `drive` has returned and in the same thread."""

    def close(self) -> None:
        """As `Dispatch.close`."""


class OpenIntake(Protocol):
    """How a driving dispatcher gets its intake."""

    def __call__(self, *, listening: bool = True) -> Intake:
        """Return a new intake. With `listening` false it returns no units."""


class Watcher(Protocol):
    """Lets the loop watch descriptors that are not requests. Use it only in the serving thread, or in the one that holds the baton."""

    def watch(self, fileno: int, readable: Callable[[], None], /) -> None:
        """Call `readable` whenever the descriptor is readable."""

    def unwatch(self, fileno: int, /) -> None:
        """Stop watching the descriptor. Call this before closing it."""

    def hold(self) -> None:
        """Take no more requests for now: stop polling the listeners, so that clients wait in the kernel's queue."""

    def release(self) -> None:
        """Take requests again after `hold`."""


class Intake(Watcher, Protocol):
    """Where a driving dispatcher takes its units of work, and learns when to stop.

    The dispatcher that opened it closes it, by leaving its `with` block, once no thread is inside `take`. Only the thread that holds
    the baton may call `take`; any thread may call `stop` and `on_stop`. An event loop watches `fileno()`, which is readable whenever
    `take(0)` might return a unit, and also calls `take(0)` after `due()` seconds without an event.
    """

    stopped: bool

    def __enter__(self) -> Self:
        """Return the intake."""

    def __exit__(self, *error: object) -> None:
        """Close the intake."""

    def take(self, timeout: float | None = None, /) -> Unit | None:
        """Return the next unit; None when stopped, or when none came within `timeout` seconds. `timeout` None: no limit."""

    def fileno(self) -> int:
        """Return a descriptor for an event loop to watch (of an epoll or a kqueue). It stays the same until the intake is closed."""

    def due(self) -> float | None:
        """Return the seconds until `take` has timed work to do, which no descriptor announces; None: there is none."""

    def woken_by_signals(self) -> AbstractContextManager[None]:
        """Return a context manager in which a signal makes the descriptor readable. It works only in the main thread.

        Python runs signal handlers between two instructions, so without it a wait that began just before the signal would not end.
        """

    def housekeep(self) -> float | None:
        """Do the server's periodic work, such as `service_actions`, if it is due. Call it in the serving thread, inside `drive`.

        Returns the seconds until the next call is due; None: the server has no such work. A dispatcher that never calls it leaves the
        work to `take`, so it may be done in another thread, and only while a thread takes requests.
        """

    def stop(self) -> None:
        """Stop the intake before `drive` raises an error. In every other case the server stops it."""

    def on_stop(self, callback: Callable[[], None], /) -> None:
        """Call `callback` when the intake stops, for threads that are not in `take`.

        It runs wherever `stop` is called, which may be a signal handler, so it may do no more than `socketkit.seams.Wakeup.wake` does.
        """
