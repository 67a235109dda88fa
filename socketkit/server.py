"""The server: it composes a transport, a dispatcher and a lifecycle, and runs each request through its template methods."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import attrs

from socketkit._engine.admission import Admission, fitted
from socketkit._engine.deadlines import Deadlines, limit_stalls
from socketkit._engine.intake import Intake
from socketkit._engine.ledger import LEDGER, Ledger, Observers
from socketkit._engine.run import Run, close_all, feed, keep_calling
from socketkit._engine.sources import ListenerSource
from socketkit._engine.steps import RequestTemplate, own_step
from socketkit._engine.work import StartedDispatcher, Work
from socketkit._system import logs
from socketkit._system.sockets import peek
from socketkit._system.timer import TimerThread
from socketkit.composition import capabilities, config
from socketkit.composition.catalog import Catalog
from socketkit.composition.explanation import Explanation, explain
from socketkit.dispatchers.adaptive import Adaptive
from socketkit.errors import AlreadyServingError
from socketkit.handlers.base import unwrapped
from socketkit.lifecycles.graceful import Graceful
from socketkit.logs import Log
from socketkit.seams import Address, Clock, Dispatcher, Lifecycle, Listener, Request, State, Transport
from socketkit.seams.limits import Limits
from socketkit.seams.stats import DrainReport, Stats

if TYPE_CHECKING:
    from types import TracebackType

log = Log("socketkit.server")

_started: weakref.WeakSet[Server] = weakref.WeakSet()  # servers that serve in their own thread; stopped at exit


class Server(RequestTemplate):
    """A server composed from parts.

    Args:
        transport: where requests come from: a recipe, a URL such as ``tcp://127.0.0.1:9999``, or a list of these.
        handler: called with (request, client_address, server) for each request; usually a `BaseRequestHandler` class, or its name as
            ``module:Class``.
        dispatcher: where and when the handler runs: a recipe, or text such as ``pool:32``. None: `Adaptive()`.
        lifecycle: how serving starts, stops and drains: a recipe, or text such as ``graceful:drain=10``. None: `Graceful()`.
        limits: how much the server admits, and for how long: a recipe, text such as ``max_connections=100``, or a mapping. None:
            `Limits()`.
        observers: objects with any of the methods of `socketkit.seams.EVENTS`. If any part is given as text, the observers of
            installed plugins are added.
        clock: the clock that deadlines are measured by; in tests, a `socketkit.testing.FakeClock`.

    Raises: ConfigError, UnknownPartError, PluginError, IncompatibleError. The constructor binds nothing: `start`, `serve_forever`
    and entering ``with`` do, and raise ListenError. Leaving ``with`` stops and closes the server.

    All methods may be called from any thread. The template methods (`get_request` to `service_actions`) are those of the standard
    library and may be overridden; the dispatcher decides which thread or process calls them.
    """

    timeout: float | None = None
    """Seconds that `handle_request` waits for a request before it calls `handle_timeout`; None: no limit."""

    sends_empty_replies: bool = False
    """Whether a `DatagramRequestHandler` that wrote nothing sends an empty datagram, as it does under the classic servers."""

    dispatcher: Any = None
    lifecycle: Any = None

    _discards_unread = True

    # --- composing ---------------------------------------------------------------------------------------------------

    def __init__(  # noqa: PLR0913 - each is one part of the composition
        self,
        transport: Transport | str | Sequence[Transport | str],
        handler: Callable[..., object] | str,
        *,
        dispatcher: Dispatcher | str | None = None,
        lifecycle: Lifecycle | str | None = None,
        limits: Limits | str | Mapping[str, Any] | None = None,
        observers: Iterable[object] = (),
        clock: Clock = time.monotonic,
    ) -> None:
        given = list(transport) if isinstance(transport, list | tuple) else [transport]
        self.transports: tuple[Transport, ...] = tuple(config.transport(each) for each in given)
        self.RequestHandlerClass: Any = config.handler(handler)
        self.dispatcher = Adaptive() if dispatcher is None else config.dispatcher(dispatcher)
        self.lifecycle = Graceful() if lifecycle is None else config.lifecycle(lifecycle)
        self.limits = Limits() if limits is None else config.limits(limits)
        capabilities.check(self.transports, self.dispatcher, self.lifecycle, self.RequestHandlerClass)
        named = any(isinstance(part, str) for part in (*given, dispatcher, lifecycle))
        self._clock = clock
        self._observe((*observers, *(Catalog.load().observers(self) if named else ())))
        self._listeners: list[Listener] = []
        self._live: StartedDispatcher | None = None
        self._gate = threading.Lock()  # guards `_run`
        self._run: Run | None = None
        self._undrained: Run | None = None  # the last run, if it was not drained
        self._stop_before_start = False

    def __repr__(self) -> str:
        where = ", ".join(self.urls)
        return f"<{type(self).__name__} {where} {self.state.value}>"

    # --- serving -----------------------------------------------------------------------------------------------------

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the calling thread until stopped.

        poll_interval: the longest time in seconds between two calls of an overridden `service_actions`; it affects nothing else.
        Raises: ListenError; AlreadyServingError; any error that ended serving early.
        """
        run = self._claim(poll_interval)
        try:
            self._serve(run)
        finally:
            self._finish(run)

    def start(self) -> Self:
        """Serve in a background thread; return the server once it takes requests. It is stopped when the program exits.

        Raises: as `serve_forever`.
        """
        run = self._claim(0.5)
        try:
            if not run.stopping:
                self._prepare()
        except BaseException:
            run.state = State.FAILED
            self._finish(run)
            raise
        thread = threading.Thread(target=self._serve_in_background, args=(run,), name="socketkit-serve", daemon=True)
        thread.start()
        run.started.wait()
        if run.error is not None and run.done.is_set():
            raise run.error
        _started.add(self)
        return self

    def handle_request(self) -> None:
        """Serve one request. If none arrives within `timeout` seconds, call `handle_timeout` instead."""
        self._open()
        self._live_part()
        sources = self._sources(parking=False)
        with Intake(sources, clock=self._clock) as intake:
            for source in sources:
                source.intake = intake
            unit = intake.take(self.timeout)
        if unit is None:
            self.handle_timeout()
        else:
            unit()

    def stop(self, drain: float | None = None, wait: bool = True) -> DrainReport | None:
        """Stop serving. May be called from any thread, handler or signal handler, in any state, any number of times.

        drain: seconds that running requests may still take; None: as the lifecycle says.
        wait: return only once the run has ended completely. Calls from a handler or from the serving thread never wait.
        In a process that the program forked while it served, this does nothing: the parent is serving.
        Returns: the drain report of the run; None if it did not drain, or if the call did not wait for it. A stop before the first
            start makes that start return at once.
        """
        run = self._run
        if run is None:
            if self.state is State.NEW:
                self._stop_before_start = True
            return self._report
        if run.is_elsewhere:
            return None
        run.stop(drain)
        current = threading.get_ident()
        if not wait or run.thread == current or self._ledger.runs_in(current):
            return None
        limit = drain if drain is not None else getattr(self.lifecycle, "drain", None)
        if drain is None and limit is not None:
            limit += getattr(self.lifecycle, "lame_duck", 0.0)
        if limit is not None and not run.done.wait(limit + 0.5):
            run.stop(0)  # the run never reached its drain: a handler occupies the serving thread
        run.done.wait()
        return run.report

    def shutdown(self) -> None:
        """Stop serving: the classic name of `stop`."""
        Server.stop(self)

    def server_close(self) -> None:
        """Stop, close the listeners, and wait for running requests up to the lifecycle's drain time. May be called repeatedly.

        From a handler it returns at once; the serving thread, or the next call, does the rest.
        """
        if self._run is not None:
            Server.stop(self)  # by class: a subclass's stop may call server_close
        self._close_listeners()
        if self._run is not None:
            return  # called from within the run, which needs the live dispatcher to end
        undrained, self._undrained = self._undrained, None
        if undrained is not None:
            undrained.abandon()
        live = self._live
        if live is not None:
            live.wait(getattr(self.lifecycle, "drain", None))
            live.close()
        if not self._ledger.runs_in(threading.get_ident()):  # a call from a handler leaves it for other callers to wait on
            self._live = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server_close()

    # --- seeing inside -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The current state of the server."""
        run = self._run  # read once: the run may end at any moment
        return run.state if run is not None else self._last_state

    _last_state = State.NEW
    _report: DrainReport | None = None

    @property
    def ready(self) -> bool:
        """Whether the server takes requests: true from when its loop runs until it is asked to stop.

        Under a dispatcher with worker processes, it becomes true when the first worker takes requests.
        """
        return self._run is not None and self._run.ready

    @property
    def addresses(self) -> list[Address]:
        """The address of each listener, as `socket.getsockname` gives it; empty unless open."""
        return [listener.address for listener in self._listeners]

    @property
    def urls(self) -> list[str]:
        """The URL of each listener, with its real port; while not open, the URL of each transport."""
        return [each.url for each in self._listeners or self.transports]

    def stats(self) -> Stats:
        """Return the counts of requests so far; `accepted == active + sum(outcomes)` in every reading."""
        return attrs.evolve(self._ledger.stats(), dropped=_sum((self._dropped, *map(_drops, self._listeners))))

    _dropped: int | None = 0  # datagrams dropped at listeners since closed

    def explain(self) -> Explanation:
        """Return the resolved composition, ready to print: each part, its supplier, each option and whether it is a default."""
        return explain(self.transports, self.RequestHandlerClass, self.dispatcher, self.lifecycle, self.limits)

    # --- the template: what a request goes through -------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the first listener's descriptor."""
        return self._listeners[0].fileno()

    def get_request(self) -> tuple[Request, Address]:
        """Return a waiting request and its peer, from the first listener that has one. Raises: BlockingIOError if none has."""
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                return listener.accept()
        raise BlockingIOError

    @own_step
    def process_request(self, request: Request, client_address: Address) -> None:
        """Hand the request to the dispatcher."""
        self.__dispatch(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """End a stream request: shut down the sending side, then call `close_request`."""
        if not isinstance(request, tuple):
            try:  # noqa: SIM105 - runs for every connection, and `suppress` costs as much as the system call
                request.shutdown(1)  # socket.SHUT_WR; the request may not be a socket
            except OSError:
                pass  # the peer may be gone
        self.close_request(request)

    def close_request(self, request: Request) -> None:
        """Close a stream request. A datagram has nothing to close."""
        if not isinstance(request, tuple):
            request.close()

    def handle_error(self, request: Request, client_address: Address) -> None:
        """Log the current exception: at DEBUG if the peer disconnected or a deadline cut the request, otherwise at ERROR."""
        error = sys.exception()
        entry = self._ledger.find(request)
        say = log.debug if isinstance(error, ConnectionError) or (entry is not None and entry.is_cut) else log.error
        say("request from %s failed", client_address, error=error)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _observe(self, observers: Iterable[object]) -> None:
        self._observers = Observers(observers)
        self._ledger = vars(self)[LEDGER] = Ledger(self, self._observers, self._clock)

    def _claim(self, poll_interval: float) -> Run:
        """Register and return a new run. Raises: AlreadyServingError."""
        with self._gate:
            if self._run is not None:
                raise AlreadyServingError
            run = Run(
                self._ledger,
                self._observers,
                self,
                live=lambda: self._live,
                crank=partial(self._crank, poll_interval=poll_interval),
                close_listeners=self._close_listeners,
                lame_duck=getattr(self.lifecycle, "lame_duck", 0.0),
                patience=getattr(self.lifecycle, "drain", None),
            )
            run.inherit(self._undrained)
            run.stopping, self._stop_before_start = self._stop_before_start, False
            self._run = run
        return run

    def _serve(self, run: Run) -> None:
        """Run the lifecycle around the loop. Raises: whatever the lifecycle raises."""
        try:
            if run.stopping:
                return
            self._prepare()
            run.report = self.lifecycle.serve(run)
        except BaseException as error:
            run.error, run.state = error, State.FAILED
            raise

    def _serve_in_background(self, run: Run) -> None:
        try:
            self._serve(run)
        except Exception:
            log.exception("%r: serving ended early", self)
        finally:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        self._last_state = State.FAILED if run.state is State.FAILED else State.STOPPED
        self._report = run.report
        run.end()
        if run.drained:
            self._live, self._undrained = None, None
        else:  # a classic lifecycle leaves the live dispatcher, the listeners and parked connections to the next run
            self._undrained = run
        with self._gate:
            self._run = None
        self._observers.tell("server_stopped", self, run.report)
        logs.finish()
        run.started.set()
        run.done.set()

    def _prepare(self) -> None:
        """Start the dispatcher, which may still refuse, then open the listeners. If either fails, neither is left open."""
        self._live_part()
        try:
            self._open()
            self._fit_limits()
        except BaseException:
            live, self._live = self._live, None
            if live is not None:
                live.close()
            raise

    def _open(self) -> None:
        """Open every listener, or none. Raises: ListenError."""
        if self._listeners:
            return
        with contextlib.ExitStack() as opened:
            listeners = []
            for transport in self.transports:
                listener = transport.open()
                opened.callback(listener.close)
                listeners.append(listener)
            opened.pop_all()
        self._listeners = listeners
        self.socket, self.server_address = listeners[0].socket, listeners[0].address

    def _close_listeners(self, *, streams_only: bool = False) -> None:
        """Close the listeners; with `streams_only` keep datagram listeners, whose sockets running requests still reply on."""
        pairs = list(zip(self._listeners, self.transports, strict=False))
        kept = [listener for listener, transport in pairs if streams_only and transport.kind == "datagram"]
        closing = [listener for listener in self._listeners if listener not in kept]
        self._listeners = kept
        self._dropped = _sum((self._dropped, *map(_drops, closing)))
        close_all(closing)

    def _live_part(self) -> StartedDispatcher:
        """Return the live dispatcher, starting it on first use."""
        if self._live is None:
            work = Work(self, self._ledger, self._forget_parent, self._become_branch, self._be_ready)
            self._live = StartedDispatcher(self.dispatcher, work)
            self.__dispatch = self._live.process
        return self._live

    __dispatch: Callable[[Request, Address], object]

    def _crank(self, run: Run, poll_interval: float) -> None:
        """Take requests until the run is stopped, with the dispatcher's own `drive` if it has one, otherwise in the plain loop."""
        live = self._live_part()
        turned = self._act if type(self).service_actions is not RequestTemplate.service_actions else None
        if live.drive is None:
            with run.open_intake(self._sources) as intake:
                feed(intake, live, turned, poll_interval)
            return

        def open_intake(*, listening: bool = True) -> Intake:
            intake = run.open_intake(self._sources if listening else tuple)
            if turned is not None and listening:
                keep_calling(intake, turned, poll_interval)
            return intake

        live.drive(open_intake)

    def _act(self) -> None:
        """Call `service_actions`. Serving goes on if it raises; only the first error is logged."""
        try:
            self.service_actions()
        except Exception:
            if not self._complained:
                self._complained = True
                log.exception("service_actions of %r failed; further failures of it are not logged", self)

    _complained = False

    def _sources(self, *, parking: bool = True) -> list[ListenerSource]:
        """Return the sources for an intake: one for each listener, calling `get_request` instead if it is overridden."""
        overridden = type(self).get_request is not Server.get_request
        limits = self._limits_in_force()
        live = self._live_part()
        adapt, place = live.adapt, live.parking if parking else None
        if place is not None and limits.idle is not None:
            place = attrs.evolve(place, idle=limits.idle)
        deadlines = self._keep_deadlines(limits, self._run) if self._run is not None and parking else None
        sources: list[ListenerSource] = []
        for listener, transport in zip(self._listeners, self.transports, strict=True):
            accept: Callable[[], tuple[Request, Address]] = self.get_request if overridden else listener.accept
            if limits.write_stall is not None and transport.kind == "stream":
                accept = limit_stalls(listener, accept, limits.write_stall)
            if adapt is not None:
                accept = partial(_adapted, accept, adapt)
            kind, layers = transport.kind, getattr(transport, "layers", ())
            sources.append(
                ListenerSource(
                    self,
                    listener,
                    accept,
                    kind=kind,
                    layers=layers,
                    parking=place,
                    in_place=live.runs_in_place and parking,
                    once=overridden,
                    tell=self._tell,
                )
            )
            if kind == "stream":
                sources[-1].deadlines = deadlines
        self._ledger.mixed = not all(source.counted for source in sources)
        guarded = [source for source in sources if Admission.is_needed(limits, counted=source.counted)]
        if guarded:
            admission = Admission(limits, self._ledger, guarded)
            for source in guarded:
                source.admission = admission
        return sources

    def _limits_in_force(self) -> Limits:
        """Return the limits for each serving process, as adjusted by the dispatcher and the system."""
        limits = self.limits if self._fitted is None else self._fitted
        narrow = self._live_part().narrow
        return limits if narrow is None else narrow(limits)

    def _fit_limits(self) -> None:
        """Fit the limits to the resources of this process, or of each process forked from it."""
        shared = self.limits.shared_by(getattr(self.dispatcher, "processes", 1))
        recipe = getattr(self.dispatcher, "inner", None) or self.dispatcher
        narrow = self._live_part().narrow
        others = len(self._listeners) + getattr(recipe, "workers", 0)
        self._fitted = fitted(shared if narrow is None else narrow(shared), others)

    _fitted: Limits | None = None

    def _keep_deadlines(self, limits: Limits, run: Run) -> Deadlines | None:
        """Return the deadlines of a run; None if the limits set none.

        With a process for each request, the intake keeps the time: it is always free, and a forking process should have no other
        thread. The child watches for the client's first byte. Otherwise a timer thread keeps the time, as handlers may occupy every
        thread that would check the intake.
        """
        cut = self._live_part().cut
        if cut is not None:
            limits = attrs.evolve(limits, first_byte=None)
        if not Deadlines.are_needed(limits):
            return None
        later: Callable[[float, Callable[[], object]], None] = run.call_later
        if cut is None:
            keeper = TimerThread(self._clock)
            run.at_end(keeper.close)
            later = keeper.call_later
        return Deadlines(limits, self._ledger, later, speaks_first=self._speaks_first, cut=cut)

    def _speaks_first(self) -> bool:
        return bool(getattr(unwrapped(self.RequestHandlerClass), "speaks_first", False))

    def _tell(self, event: str, *facts: object) -> None:
        self._observers.tell(event, self, *facts)

    def _be_ready(self) -> None:
        if self._run is not None:
            self._run.be_ready()

    def _forget_parent(self, request: Request) -> None:
        """In a forked child: close the loops' descriptors and the listeners, except the socket that a datagram is answered on."""
        self._forget_others()
        if not isinstance(request, tuple):
            self._close_listeners()
        if self._run is not None:
            self._run.forget()
        if request is not None:
            self._wait_for_first_byte(request)

    def _wait_for_first_byte(self, request: Request) -> None:
        """In a child forked for one request: enforce the first-byte limit. The parent keeps the other deadlines."""
        limits = attrs.evolve(self.limits, request=None)
        if limits.first_byte is not None and not isinstance(request, tuple) and peek(request) is None:
            deadlines = Deadlines(limits, self._ledger, TimerThread(self._clock).call_later, speaks_first=self._speaks_first)
            deadlines.listen_to(request)
            deadlines.begin()

    def _forget_others(self) -> None:
        """In a forked child: close the listeners and loops of other servers."""
        for other in list(_started):
            if other is not self:
                other._close_listeners()  # noqa: SLF001 - another instance of this class
                if other._run is not None:  # noqa: SLF001
                    other._run.forget()  # noqa: SLF001

    def _become_branch(self, dispatcher: Dispatcher | None, ledger: Ledger, opened: Callable[[Intake], None]) -> Run:
        """In a forked child that serves: switch to another dispatcher, with its own ledger and run."""
        assert self._run is not None  # noqa: S101 - the dispatcher that drives this run forked the child
        self._forget_others()
        self._gate = threading.Lock()
        self._ledger = vars(self)[LEDGER] = ledger
        self._run = self._run.branch(ledger, opened)
        self.dispatcher, self._live = dispatcher or Adaptive(), None
        self._live_part()
        return self._run


def _drops(listener: Listener) -> int | None:
    """Return how many datagrams the system dropped at a listener: None if unknown, 0 for other kinds."""
    dropped: int | None = getattr(listener, "dropped", 0)
    return dropped


def _sum(counts: Sequence[int | None]) -> int | None:
    """Return the sum; None if any count is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _adapted(accept: Callable[[], tuple[Request, Address]], adapt: Callable[[Request], Request]) -> tuple[Request, Address]:
    request, client_address = accept()
    return adapt(request), client_address


def compose(spec: Mapping[str, Any]) -> Server:
    """Return the server that a mapping describes, with the keys of a ``[servers.NAME]`` table in a configuration file.

    Raises: ConfigError with every fault of the mapping, by key; IncompatibleError.
    """
    return assemble(config.composition(spec))


def assemble(parts: config.Composition, *observers: object) -> Server:
    """Return the server of a composition, with these observers and those of the plugins. Nothing is bound. Raises: IncompatibleError."""
    server = Server(parts.listen, parts.handler, dispatcher=parts.dispatcher, lifecycle=parts.lifecycle, limits=parts.limits)
    server._observe((*observers, *Catalog.load().observers(server)))  # noqa: SLF001 - completes its constructor
    return server


@atexit.register
def _stop_started() -> None:
    for server in list(_started):
        server.stop()
