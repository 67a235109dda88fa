"""Where and when handlers run: a dispatcher's recipe, its two live shapes, and what the server gives to either."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from socketkit.seams.types import Address, Request, Unit

if TYPE_CHECKING:
    from socketkit.seams.lifecycles import Serving
    from socketkit.seams.stats import Stats


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
        """Account for a request that another process served; outcomes as in `socketkit._engine.ledger.Ledger`. `run` accounts for its own."""
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
        opened: called with the intake (a `socketkit._engine.intake.Intake`) when it is about to be used. settled: called with the number of
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

        Also called during a drain, for connections that the kernel had queued.
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

        Called more than once on the same live part. A drain calls it a second time to serve what was accepted or queued by the
        kernel when stop was asked for: that intake has no listeners, and stops by itself. A server that is started again without
        having been drained calls it again too. Threads of the call before may still be inside a handler, so a drive starts threads
        of its own and hands its intake to them.

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
        a signal handler included, so it may do no more than `socketkit._engine.intake.Wakeup.wake` does.
        """
        ...
