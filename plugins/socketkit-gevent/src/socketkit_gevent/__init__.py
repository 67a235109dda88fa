"""A dispatcher for socketkit: each request runs on its own greenlet, all in the serving thread.

Handlers stay plain blocking code and nothing is monkey-patched: a handler gets a gevent socket, which lets the other greenlets run when
it would block.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import sys
import threading
import weakref
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
    from collections.abc import Mapping

    from gevent.hub import Hub

    from socketkit.seams import Adapts, Awaits, Dispatcher, Drive, Forces, Intake, OpenIntake, Request, Unit, Work

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

    def start(self, work: Work) -> _Greenlets:  # noqa: ARG002 - units already refer to it
        """Return the live part.

        Raises: IncompatibleError if `select` is patched in this process: a patched select has no epoll or kqueue to watch.
        """
        if gevent.monkey.is_module_patched("select"):
            raise IncompatibleError("Gevent", "cannot watch a patched select module", "patch with gevent.monkey.patch_all(select=False)")
        live = _Greenlets(self.max_greenlets)
        atexit.register(live.leave)
        return live


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Gevent]]:
    """Return the dispatcher of this distribution, by name."""
    return {"gevent": Gevent}


# --- the live part ---------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Greenlets:
    """Takes units in the serving thread and runs each on a greenlet. Everything here belongs to that thread."""

    bound: int | None
    greenlets: set[_Greenlet] = attrs.field(factory=set)
    """The greenlets of running units."""
    held: Intake | None = None
    """The intake, while the limit keeps it from taking more."""
    connections: weakref.WeakSet[Any] = attrs.field(factory=weakref.WeakSet)
    """Green connections that are still referenced."""
    encrypted: dict[type, type] = attrs.field(factory=dict)
    """The green class for each class of sockets with TLS that a request had."""
    answering: dict[Any, Any] = attrs.field(factory=dict)
    """The sockets of datagram listeners, each with the socket that handlers get instead."""
    hub: Hub | None = None
    """The hub of the serving thread, if this dispatcher created it."""
    thread: threading.Thread | None = None
    """The thread that last called `drive`."""
    intake: Intake | None = None
    """The intake, while `drive` takes from it."""
    leaving: bool = False
    """The program ends, so that a daemon thread must not enter the hub again."""
    warned: bool = False

    # the seams

    def drive(self, open_intake: OpenIntake) -> None:
        """Take units and spawn them until stopped; wait in the hub, so that the greenlets run meanwhile."""
        self.thread = threading.current_thread()
        self._enter_hub()
        hub = gevent.get_hub()
        try:
            with (
                open_intake() as intake,
                contextlib.closing(hub.loop.io(intake.fileno(), READ)) as readable,
                intake.woken_by_signals(),  # otherwise a signal just before the hub goes to sleep waits for the next event
            ):
                self.intake = intake
                while not (intake.stopped or self.leaving):
                    self._take(intake)
                    if not intake.stopped:  # taking may have consumed the wake-up of the stop
                        with gevent.Timeout(intake.due(), exception=False):  # type: ignore[arg-type] # False: continue; missing in the stubs
                            hub.wait(readable)
        finally:
            self.held = self.intake = None
            gevent.sleep(0)  # lets greenlets that are ready to end do so: without a drain, this hub may never run again
            if not self.greenlets:
                self._leave_hub()

    def adapt(self, request: Request) -> Request:
        """Return the request with a green socket instead of its own; in a thread of the server's own, return it unchanged."""
        if self.thread is not None and get_hub_if_exists() is None:
            return request
        self._enter_hub()
        if not isinstance(request, tuple):
            return self._green(request)
        data, answer = request
        listener = answer.socket if isinstance(answer, ReplySocket) else answer
        if listener not in self.answering:
            self.answering[listener] = self._answer_for(listener)
        green = self.answering[listener]
        return data, attrs.evolve(answer, socket=green) if isinstance(answer, ReplySocket) else green

    def until_ready(self, request: Request, seconds: float | None, /, *, sends: bool) -> bool:
        """Wait as a greenlet until the connection can receive, or send."""
        return until_ready(request.fileno(), seconds, sends=sends)

    def wait(self, timeout: float | None) -> bool:
        """Let the greenlets run until all except the caller's have ended.

        Another thread cannot make them run, so the method returns at once there.
        """
        others = [each for each in self.greenlets if each is not gevent.getcurrent()]
        if others and threading.current_thread() is self.thread:
            gevent.joinall(others, timeout)
        return all(each.dead for each in others)

    def force(self) -> None:
        """Kill greenlets that do not end within a short time. A handler in a read has just received the end of its stream, and may finish."""
        gevent.spawn_later(BEFORE_KILL, self._kill)

    def close(self) -> None:
        """Close the sockets for replies. Destroy the hub if this dispatcher created it, after ending the greenlets still in it."""
        if gevent.getcurrent() in self.greenlets:  # a handler is closing its own server
            return
        atexit.unregister(self.leave)
        if self.greenlets and self.hub is not None:
            for connection in list(self.connections):
                with contextlib.suppress(OSError):  # it may be closed by now
                    connection.shutdown(socket.SHUT_RDWR)
            if not self.wait(BEFORE_KILL):
                self._kill()
                self.wait(LAST_WORD)
        self._leave_hub()

    def leave(self) -> None:
        """Have a daemon thread leave its hub, because the program ends. Registered with atexit.

        Python ends such a thread when it next needs the interpreter's lock, by pthread_exit(3). That unwinds the stack, and the frames
        of greenlets on it then touch objects without the lock: a crash. Source: Python 3.11 to 3.13, PyThread_exit_thread. Handlers that
        still run are left where they wait, like daemon threads.
        """
        thread, intake = self.thread, self.intake
        if thread is None or thread is threading.current_thread() or not thread.daemon or not thread.is_alive():  # also in forked processes
            return
        self.leaving = True
        if intake is not None:
            intake.stop()
        thread.join(LAST_WORD)

    # inside

    def _take(self, intake: Intake) -> None:
        """Spawn available units, up to a maximum: the intake signals the rest again."""
        for _ in range(UNITS_PER_TURN):
            unit = intake.take(0)
            if unit is None:
                return
            self._spawn(unit)
            if len(self.greenlets) == self.bound:
                self.held = intake
                intake.hold()

    def _spawn(self, unit: Unit) -> None:
        self.greenlets.add(gevent.spawn(self._run, unit))

    def _run(self, unit: Unit) -> None:
        try:
            unit()  # any exception is for the process; gevent raises it in the main greenlet
        finally:
            self.greenlets.discard(cast("_Greenlet", gevent.getcurrent()))
            held, self.held = self.held, None
            if held is not None:
                held.release()

    def _kill(self) -> None:
        """Raise GreenletExit in every started greenlet; one that has not started would never settle its request."""
        if threading.current_thread() is not self.thread:
            return
        gevent.killall([each for each in self.greenlets if each.gr_frame is not None], block=False)

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

    def _enter_hub(self) -> None:
        if get_hub_if_exists() is None:
            self.hub = gevent.get_hub()

    def _leave_hub(self) -> None:
        for listener, green in self.answering.items():
            if green is not listener:
                green.close()
                with contextlib.suppress(OSError):  # the copies share O_NONBLOCK; the listener may be closed by now
                    listener.settimeout(listener.gettimeout())
        self.answering.clear()
        hub, self.hub = self.hub, None
        if hub is not None and (get_hub_if_exists() is hub or not (self.thread and self.thread.is_alive())):
            hub.destroy(destroy_loop=True)


if TYPE_CHECKING:
    _recipe: Dispatcher = Gevent()
    _drive: Drive = _Greenlets(None)
    _adapts: Adapts = _Greenlets(None)
    _awaits: Awaits = _Greenlets(None)
    _forces: Forces = _Greenlets(None)
