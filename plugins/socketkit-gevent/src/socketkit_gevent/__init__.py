"""A dispatcher for socketkit: each request runs on its own greenlet, all in the serving thread.

Handlers stay plain blocking code and nothing is monkey-patched: a handler gets a gevent socket, which lets the other greenlets run when
it would block.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import socket
import sys
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import attrs
import gevent
import gevent.monkey
import gevent.socket
from gevent._hub_local import get_hub_if_exists  # gevent has no public way to ask without creating a hub

from socketkit.errors import IncompatibleError
from socketkit.hookspecs import hookimpl
from socketkit.logs import Log
from socketkit.seams.replies import ReplySocket
from socketkit_gevent._plain import GreenSocket
from socketkit_gevent._waiting import until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gevent.hub import Hub

    from socketkit.seams import Adapts, Awaits, Dispatcher, Drive, Forces, Intake, Lingers, OpenIntake, Request, Unit, Work

    _Greenlet: TypeAlias = gevent.Greenlet[..., object]

__all__ = ("Gevent", "socketkit_dispatchers")

log = Log(__name__)

READ = 1
"""The event loop's flag for a readable descriptor."""

UNITS_PER_TURN = 64
"""How many requests the loop takes before they get to run."""

BEFORE_KILL = 0.1
"""Seconds that handlers get to end by themselves after their sockets have been shut down."""

LAST_WORD = 0.5
"""Seconds that killed handlers get for their clean-up before the hub is destroyed."""

_PLAIN: Any = gevent.monkey.get_original("socket", "socket")
_SLEEP: Any = gevent.monkey.get_original("time", "sleep")


@attrs.frozen
class Gevent:
    """A greenlet for each request, up to a limit; beyond it, clients wait in the kernel's queue."""

    max_greenlets: int | None = attrs.field(default=10_000)
    """Most requests that run at once, at least 1; None: no limit. Takes effect when the server starts."""

    requires: ClassVar[frozenset[str]] = frozenset({"sockets"})

    @max_greenlets.validator
    def _valid_bound(self, _field: object, bound: object) -> None:
        if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or bound < 1):
            raise ValueError(f"max_greenlets must be a whole number of at least 1, or nothing for no bound, not {bound!r}")

    def max_handlers(self, handler: object) -> int | None:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once: one in each greenlet. None: no limit."""
        return self.max_greenlets

    def start(self, work: Work) -> _Greenlets:  # noqa: ARG002 - units already refer to it
        """Return the live part.

        Raises: IncompatibleError if `select` is patched in this process: a patched select has no epoll or kqueue to watch.
        """
        if gevent.monkey.is_module_patched("select"):
            raise IncompatibleError("Gevent", "cannot watch a patched select module", "patch with gevent.monkey.patch_all(select=False)")
        live = _Greenlets(math.inf if self.max_greenlets is None else self.max_greenlets)
        atexit.register(live.leave)
        return live


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Gevent]]:
    """Return the dispatcher of this distribution, by name."""
    return {"gevent": Gevent}


# --- the live part ---------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Loop:
    """A thread's hub, and what this dispatcher has on it. Only that thread uses it, except where a comment says otherwise."""

    hub: Hub
    is_ours: bool
    """Whether this dispatcher created the hub."""
    thread: threading.Thread
    answering: dict[Any, Any] = attrs.field(factory=dict)
    """The sockets of datagram listeners, each with the socket that handlers get instead."""
    intake: Intake | None = None
    """The intake, while `drive` takes from it. Any thread may stop it."""
    leaving: bool = False
    """The program ends, so that a daemon thread must not enter the hub again."""
    left: _Greenlet | None = None
    """Waits for the other greenlets, while they go on without `drive`, in a thread that ends with them."""

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one of the hub. From any thread."""
        return get_hub_if_exists() is self.hub

    @property
    def lingers(self) -> bool:
        """Whether its greenlets go on without `drive`. From any thread."""
        return self.left is not None

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call the function in the hub: at once if that is in this thread, else soon. From any thread."""
        if self.is_here:
            function(*arguments)
        elif self.thread.is_alive():
            self.hub.loop.run_callback_threadsafe(function, *arguments)


@attrs.define(eq=False)
class _Greenlets:
    """Takes units in the serving thread and runs each on a greenlet.

    A greenlet can run only in the thread that it began in. After a run without a drain those of the server's own thread go on there
    (`linger`), beside the next run in another thread, so there is a loop for each thread.
    """

    bound: float
    greenlets: set[_Greenlet] = attrs.field(factory=set)
    """The greenlets of running units, in all threads."""
    loops: dict[Hub, _Loop] = attrs.field(factory=dict)
    held: tuple[_Loop, Intake] | None = None
    """The intake that the limit keeps from taking more, and its loop."""
    connections: weakref.WeakSet[Any] = attrs.field(factory=weakref.WeakSet)
    """Green connections that are still referenced."""
    encrypted: dict[type, type] = attrs.field(factory=dict)
    """The green class for each class of sockets with TLS that a request had."""
    thread: threading.Thread | None = None
    """The thread that last called `drive`."""
    warned: bool = False

    # the seams

    def drive(self, open_intake: OpenIntake) -> None:
        """Take units and spawn them until stopped; wait in the hub, so that the greenlets run meanwhile."""
        loop = self._enter()
        self.thread = loop.thread = threading.current_thread()
        try:
            with (
                open_intake() as intake,
                contextlib.closing(loop.hub.loop.io(intake.fileno(), READ)) as readable,
                intake.woken_by_signals(),  # otherwise a signal just before the hub goes to sleep waits for the next event
            ):
                loop.intake = intake
                if len(self.greenlets) >= self.bound:  # of the run before
                    self._hold(loop, intake)
                while not (intake.stopped or loop.leaving):
                    self._take(loop, intake)
                    if not intake.stopped:  # taking may have consumed the wake-up of the stop
                        with gevent.Timeout(intake.due(), exception=False):  # type: ignore[arg-type] # False: continue; missing in the stubs
                            loop.hub.wait(readable)
        finally:
            self.held = loop.intake = None
            gevent.sleep(0)  # lets greenlets that are ready to end do so: without a drain, this hub may never run again
            if not self._running(loop):
                self._leave(loop)

    def adapt(self, request: Request) -> Request:
        """Return the request with a green socket instead of its own; in a thread of the server's own, return it unchanged."""
        if get_hub_if_exists() is None:
            if self.thread not in {None, threading.current_thread()}:
                return request
            self._enter()
        if not isinstance(request, tuple):
            return self._green(request)
        (data, answer), loop = request, self._enter()
        listener = answer.socket if isinstance(answer, ReplySocket) else answer
        if listener not in loop.answering:
            loop.answering[listener] = self._answer_for(listener)
        green = loop.answering[listener]
        return data, attrs.evolve(answer, socket=green) if isinstance(answer, ReplySocket) else green

    def until_ready(self, request: Request, seconds: float | None, /, *, sends: bool) -> bool:
        """Wait as a greenlet until the connection can receive, or send."""
        return until_ready(request.fileno(), seconds, sends=sends)

    def wait(self, timeout: float | None) -> bool:
        """Let the greenlets of this thread run until all except the caller's have ended; wait for those of threads that linger.

        Nothing can make those of other threads run, so the method does not wait for them.
        """
        end = None if timeout is None else time.monotonic() + timeout
        others = [each for each in list(self.greenlets) if each is not gevent.getcurrent()]
        for loop in list(self.loops.values()):
            if loop.is_here and loop.leaving:
                _SLEEP(LAST_WORD if timeout is None else timeout)  # outside the hub, as `leave` needs it
            elif loop.is_here:
                gevent.joinall([each for each in others if each.parent is loop.hub], timeout)
            elif loop.lingers:
                loop.thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return all(each.dead for each in others)

    def force(self) -> None:
        """Kill greenlets that do not end within a short time. A handler in a read has just received the end of its stream, and may finish."""
        for loop in list(self.loops.values()):
            loop.call(gevent.spawn_later, BEFORE_KILL, self._kill, loop)

    def linger(self) -> Callable[[], None]:
        """Return what lets the greenlets of this thread go on until they have ended, and then leaves the hub."""
        hub = get_hub_if_exists()
        loop = None if hub is None else self.loops.get(hub)
        if loop is None:  # nothing runs any more
            return lambda: None
        loop.left = left = cast("_Greenlet", gevent.spawn(gevent.joinall, self._running(loop)))
        return partial(self._linger, loop, left)

    def close(self) -> None:
        """Close the sockets for replies. Destroy each hub that this dispatcher created, after ending the greenlets still in it."""
        if gevent.getcurrent() in self.greenlets:  # a handler is closing its own server
            return
        atexit.unregister(self.leave)
        ours = [loop for loop in self.loops.values() if loop.is_ours]
        if self.greenlets and ours:
            for connection in list(self.connections):
                with contextlib.suppress(OSError):  # it may be closed by now
                    connection.shutdown(socket.SHUT_RDWR)
            if not self.wait(BEFORE_KILL):
                for loop in ours:
                    loop.call(self._kill, loop)
                self.wait(LAST_WORD)
        for loop in list(self.loops.values()):
            self._leave(loop)

    def leave(self) -> None:
        """Have each daemon thread leave its hub, because the program ends. Registered with atexit.

        Python ends such a thread when it next needs the interpreter's lock, by pthread_exit(3). That unwinds the stack, and the frames
        of greenlets on it then touch objects without the lock: a crash. Source: Python 3.11 to 3.13, PyThread_exit_thread. Handlers that
        still run are left where they wait, like daemon threads.
        """
        for loop in list(self.loops.values()):
            thread, intake, left = loop.thread, loop.intake, loop.left
            if thread is threading.current_thread() or not thread.daemon or not thread.is_alive():  # also in forked processes
                continue
            loop.leaving = True
            if intake is not None:
                intake.stop()
            if left is not None:
                loop.call(partial(left.kill, block=False))
            thread.join(LAST_WORD)

    # inside

    def _take(self, loop: _Loop, intake: Intake) -> None:
        """Spawn available units, up to a maximum: the intake signals the rest again."""
        for _ in range(UNITS_PER_TURN):
            unit = intake.take(0)
            if unit is None:
                return
            self._spawn(unit)
            if len(self.greenlets) >= self.bound:
                self._hold(loop, intake)

    def _hold(self, loop: _Loop, intake: Intake) -> None:
        self.held = loop, intake
        intake.hold()
        if len(self.greenlets) < self.bound:  # one of another thread has ended meanwhile, perhaps too early to see this
            self._release()

    def _release(self) -> None:
        """Take more, because a greenlet has ended, in whatever thread."""
        held, self.held = self.held, None
        if held is not None:
            loop, intake = held
            loop.call(lambda: intake.release() if loop.intake is intake else None)

    def _spawn(self, unit: Unit) -> None:
        self.greenlets.add(gevent.spawn(self._run, unit))

    def _run(self, unit: Unit) -> None:
        try:
            unit()  # any exception is for the process; gevent raises it in the main greenlet
        finally:
            self.greenlets.discard(cast("_Greenlet", gevent.getcurrent()))
            if self.held is not None:
                self._release()

    def _running(self, loop: _Loop) -> list[_Greenlet]:
        return [each for each in list(self.greenlets) if each.parent is loop.hub]

    def _kill(self, loop: _Loop) -> None:
        """Raise GreenletExit in every started greenlet; one that has not started would never settle its request."""
        gevent.killall([each for each in self._running(loop) if each.gr_frame is not None], block=False)

    def _linger(self, loop: _Loop, left: _Greenlet) -> None:
        left.join()
        if loop.left is left:  # otherwise a later run in this thread lingers too, and leaves
            loop.left = None
            if not loop.leaving:
                self._leave(loop)

    def _green(self, request: Any) -> Any:
        """Return a green socket for a plain one or one with TLS, with its timeout; return anything else unchanged."""
        if type(request) is not _PLAIN:
            if self._make_green(request):
                self.connections.add(request)
            elif not self.warned and not isinstance(request, gevent.socket.socket):
                self.warned = True
                log.warning("a %s cannot be made green: while a handler waits for it, all others stand still", type(request).__name__)
            return request
        green = GreenSocket(request.family, request.type, request.proto, fileno=request.fileno())
        green.settimeout(request.gettimeout())
        request.detach()
        self.connections.add(green)
        return green

    def _make_green(self, request: Any) -> bool:
        """Make a socket with TLS green; return False if it is none."""
        if "ssl" not in sys.modules:
            return False
        from socketkit_gevent._encrypted import make_green  # noqa: PLC0415 - it imports `ssl`, which most programs do not need

        return make_green(request, self.encrypted)

    def _answer_for(self, listener: Any) -> Any:
        """Return a socket for replies, on a copy of the listener's descriptor."""
        if type(listener) is not _PLAIN:
            return self._green(listener)
        green = GreenSocket(listener.family, listener.type, listener.proto, fileno=listener.dup().detach())
        green.settimeout(listener.gettimeout())
        return green

    def _enter(self) -> _Loop:
        """Return the loop of this thread."""
        is_ours = get_hub_if_exists() is None
        hub = gevent.get_hub()
        loop = self.loops.get(hub)
        if loop is None:
            loop = self.loops[hub] = _Loop(hub, is_ours, threading.current_thread())
        return loop

    def _leave(self, loop: _Loop) -> None:
        """Close the sockets for replies, and destroy the hub if this dispatcher created it. A loop that lingers leaves by itself."""
        if loop.lingers or loop.intake is not None:
            return
        self.loops.pop(loop.hub, None)
        for listener, green in loop.answering.items():
            if green is not listener:
                green.close()
                with contextlib.suppress(OSError):  # the copies share O_NONBLOCK; the listener may be closed by now
                    listener.settimeout(listener.gettimeout())
        loop.answering.clear()
        if loop.is_ours and (loop.is_here or not loop.thread.is_alive()):
            loop.hub.destroy(destroy_loop=True)


if TYPE_CHECKING:
    _recipe: Dispatcher = Gevent()
    _drive: Drive = _Greenlets(math.inf)
    _adapts: Adapts = _Greenlets(math.inf)
    _awaits: Awaits = _Greenlets(math.inf)
    _forces: Forces = _Greenlets(math.inf)
    _lingers: Lingers = _Greenlets(math.inf)
