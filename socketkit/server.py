"""The server: a composition of a transport, a dispatcher and a lifecycle, and the template methods that a request goes through."""

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

_started: weakref.WeakSet[Server] = weakref.WeakSet()  # servers with a serving thread of their own, stopped at exit


class Server(RequestTemplate):
    """A server composed from parts.

    Args:
        transport: where requests come from: a recipe, a URL such as ``tcp://127.0.0.1:9999``, or a list of these.
        handler: called with (request, client_address, server) for each request; usually a `BaseRequestHandler` class. Also as
            ``module:Class``.
        dispatcher: where and when the handler runs: a recipe, or text such as ``pool:32``. None: `Adaptive()`.
        lifecycle: how serving starts, stops and drains: a recipe, or text such as ``graceful:drain=10``. None: `Graceful()`.
        limits: what it admits, and for how long: a recipe, text such as ``max_connections=100``, or a mapping. None: `Limits()`.
        observers: objects with any of the methods of `socketkit.seams.EVENTS`. Where a part was given as text, those of the
            installed plugins are added.
        clock: what deadlines are measured by; for tests, a `socketkit.testing.FakeClock`.

    Raises: ConfigError, UnknownPartError, PluginError, IncompatibleError. Nothing is bound yet: that is done by `start`,
    `serve_forever` or entering ``with``, which raise ListenError; leaving ``with`` stops and closes.

    All methods may be called from any thread. The template methods (`get_request` to `service_actions`) are the standard library's
    and may be overridden; which thread or process calls them is the dispatcher's choice.
    """

    timeout: float | None = None
    """Seconds `handle_request` waits for a request before it calls `handle_timeout`; None: for ever."""

    sends_empty_replies: bool = False
    """Whether a `DatagramRequestHandler` that has written nothing sends an empty datagram, as the classic servers have it."""

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
        self._gate = threading.Lock()  # guards who is serving
        self._run: Run | None = None
        self._undrained: Run | None = None  # the last one, if it was not
        self._stop_before_start = False

    def __repr__(self) -> str:
        where = ", ".join(self.urls)
        return f"<{type(self).__name__} {where} {self.state.value}>"

    # --- serving -----------------------------------------------------------------------------------------------------

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the calling thread until stopped.

        poll_interval: the most seconds between two calls of an overridden `service_actions`; nothing else waits for it.
        Raises: ListenError; AlreadyServingError; whatever ended serving early.
        """
        run = self._claim(poll_interval)
        try:
            self._serve(run)
        finally:
            self._finish(run)

    def start(self) -> Self:
        """Serve in a thread of the server's own; return the server once it takes requests. It is stopped when the program exits.

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
        """Serve one request, or none if `timeout` seconds pass without; then `handle_timeout` is called."""
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
        """Stop serving: from any thread, handler or signal handler, in any state, any number of times.

        drain: seconds that running requests may still take; None: as the lifecycle says.
        wait: return only when nothing of the run is left. A handler, and the thread that serves, are never made to wait for
            themselves.
        In a process that the program has forked while it served it does nothing: what serves is the parent.
        Returns: the report of the drain, if it was waited for. A stop before the first start makes that one return at once.
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
            run.stop(0)  # the run did not come to its drain: a handler holds the serving thread itself
        run.done.wait()
        return run.report

    def shutdown(self) -> None:
        """Stop serving, by the classic name."""
        Server.stop(self)

    def server_close(self) -> None:
        """Stop, close the listeners, and wait for running requests as long as the lifecycle's drain says. Legal twice.

        From a handler it returns at once, and the thread that serves, or whoever closes it next, does the rest.
        """
        if self._run is not None:
            Server.stop(self)  # by name: a subclass may call this from its own stop
        self._close_listeners()
        if self._run is not None:
            return  # called from within the run, whose end needs the live dispatcher
        undrained, self._undrained = self._undrained, None
        if undrained is not None:
            undrained.abandon()
        live = self._live
        if live is not None:
            live.wait(getattr(self.lifecycle, "drain", None))
            live.close()
        if not self._ledger.runs_in(threading.get_ident()):  # else a handler has called this, and others shall wait for that
            self._live = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server_close()

    # --- seeing inside -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the server is in its life."""
        run = self._run  # which may end between two looks
        return run.state if run is not None else self._last_state

    _last_state = State.NEW
    _report: DrainReport | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes requests and means to go on: from the moment the loop runs until stop is asked for.

        Under a dispatcher with worker processes, from the moment the first of them takes requests.
        """
        return self._run is not None and self._run.ready

    @property
    def addresses(self) -> list[Address]:
        """Where each listener listens, as `socket.getsockname` gives it; empty unless open."""
        return [listener.address for listener in self._listeners]

    @property
    def urls(self) -> list[str]:
        """The URL of each listener, with its real port; of each transport while not open."""
        return [each.url for each in self._listeners or self.transports]

    def stats(self) -> Stats:
        """Return what was served so far; `accepted == active + sum(outcomes)` in every reading."""
        return attrs.evolve(self._ledger.stats(), dropped=_sum((self._dropped, *map(_drops, self._listeners))))

    _dropped: int | None = 0  # at listeners that are closed by now

    def explain(self) -> Explanation:
        """Return the resolved composition: each part, who supplied it, each option and whether it is a default. It prints well."""
        return explain(self.transports, self.RequestHandlerClass, self.dispatcher, self.lifecycle, self.limits)

    # --- the template: what a request goes through -------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the first listener's descriptor."""
        return self._listeners[0].fileno()

    def get_request(self) -> tuple[Request, Address]:
        """Return a waiting request and its peer, from the first listener that has one. Raises: BlockingIOError when none has."""
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                return listener.accept()
        raise BlockingIOError

    @own_step
    def process_request(self, request: Request, client_address: Address) -> None:
        """Hand the request to the dispatcher."""
        self.__dispatch(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """End a stream request: tell the peer that nothing more comes, then `close_request`."""
        if not isinstance(request, tuple):
            try:  # noqa: SIM105 - this is run for every connection, and `suppress` costs as much as the system call
                request.shutdown(1)  # socket.SHUT_WR; a request need not be a socket
            except OSError:
                pass  # the peer may be gone
        self.close_request(request)

    def close_request(self, request: Request) -> None:
        """Close a stream request. A datagram has nothing to close."""
        if not isinstance(request, tuple):
            request.close()

    def handle_error(self, request: Request, client_address: Address) -> None:
        """Log the exception that is being handled: a peer that went away, or whose time is over, at DEBUG, anything else as an ERROR."""
        error = sys.exception()
        entry = self._ledger.find(request)
        say = log.debug if isinstance(error, ConnectionError) or (entry is not None and entry.is_cut) else log.error
        say("request from %s failed", client_address, error=error)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _observe(self, observers: Iterable[object]) -> None:
        self._observers = Observers(observers)
        self._ledger = vars(self)[LEDGER] = Ledger(self, self._observers, self._clock)

    def _claim(self, poll_interval: float) -> Run:
        """Become the one who serves. Raises: AlreadyServingError."""
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
        """Run the lifecycle around the loop. Raises: what it raises."""
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
        else:  # a classic lifecycle leaves its live dispatcher, its listeners, and who is parked, for the next run
            self._undrained = run
        with self._gate:
            self._run = None
        self._observers.tell("server_stopped", self, run.report)
        logs.finish()
        run.started.set()
        run.done.set()

    def _prepare(self) -> None:
        """Start the dispatcher, which may still refuse, and then open the listeners. If one of them fails nothing is left of either."""
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
        """Close the listeners; with `streams_only` keep those whose sockets running requests still answer on."""
        pairs = list(zip(self._listeners, self.transports, strict=False))
        kept = [listener for listener, transport in pairs if streams_only and transport.kind == "datagram"]
        closing = [listener for listener in self._listeners if listener not in kept]
        self._listeners = kept
        self._dropped = _sum((self._dropped, *map(_drops, closing)))
        close_all(closing)

    def _live_part(self) -> StartedDispatcher:
        """Return the live dispatcher, started when first needed."""
        if self._live is None:
            work = Work(self, self._ledger, self._forget_parent, self._become_branch, self._be_ready)
            self._live = StartedDispatcher(self.dispatcher, work)
            self.__dispatch = self._live.process
        return self._live

    __dispatch: Callable[[Request, Address], object]

    def _crank(self, run: Run, poll_interval: float) -> None:
        """Take requests until the run is stopped, by the dispatcher's own drive or by the plain loop."""
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
        """Call `service_actions`, whose errors are no reason to stop serving."""
        try:
            self.service_actions()
        except Exception:
            if not self._complained:
                self._complained = True
                log.exception("service_actions of %r failed; further failures of it are not logged", self)

    _complained = False

    def _sources(self, *, parking: bool = True) -> list[ListenerSource]:
        """Return what an intake takes from: each listener, or an overridden `get_request` in their place."""
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
        """Return the limits of each process that serves, with what the dispatcher and the system make of them."""
        limits = self.limits if self._fitted is None else self._fitted
        narrow = self._live_part().narrow
        return limits if narrow is None else narrow(limits)

    def _fit_limits(self) -> None:
        """Find out how much of the limits this process, or each that is forked from it, can have."""
        shared = self.limits.shared_by(getattr(self.dispatcher, "processes", 1))
        recipe = getattr(self.dispatcher, "inner", None) or self.dispatcher
        narrow = self._live_part().narrow
        others = len(self._listeners) + getattr(recipe, "workers", 0)
        self._fitted = fitted(shared if narrow is None else narrow(shared), others)

    _fitted: Limits | None = None

    def _keep_deadlines(self, limits: Limits, run: Run) -> Deadlines | None:
        """Return what watches over the connections of a run, if anything has to.

        Where each request is a process the intake keeps the time, which is at hand whatever they do: a process that forks shall have
        no other thread. What its client says is the child's to know. Everywhere else those who would look at the intake may all be
        held by handlers.
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
        """In a forked child: close the listeners, but for the socket a datagram is answered on, and the loops' descriptors."""
        self._forget_others()
        if not isinstance(request, tuple):
            self._close_listeners()
        if self._run is not None:
            self._run.forget()
        if request is not None:
            self._wait_for_first_byte(request)

    def _wait_for_first_byte(self, request: Request) -> None:
        """In a child forked for one request: see that its client says something. The rest of the time is the parent's to keep."""
        limits = attrs.evolve(self.limits, request=None)
        if limits.first_byte is not None and not isinstance(request, tuple) and peek(request) is None:
            deadlines = Deadlines(limits, self._ledger, TimerThread(self._clock).call_later, speaks_first=self._speaks_first)
            deadlines.listen_to(request)
            deadlines.begin()

    def _forget_others(self) -> None:
        """In a forked child: close what is other servers'."""
        for other in list(_started):
            if other is not self:
                other._close_listeners()  # noqa: SLF001 - another instance of this very class
                if other._run is not None:  # noqa: SLF001
                    other._run.forget()  # noqa: SLF001

    def _become_branch(self, dispatcher: Dispatcher | None, ledger: Ledger, opened: Callable[[Intake], None]) -> Run:
        """In a forked child that is to serve: be a server under another dispatcher, with books and a run of its own."""
        assert self._run is not None  # noqa: S101 - it is forked by the dispatcher that drives this run
        self._forget_others()
        self._gate = threading.Lock()
        self._ledger = vars(self)[LEDGER] = ledger
        self._run = self._run.branch(ledger, opened)
        self.dispatcher, self._live = dispatcher or Adaptive(), None
        self._live_part()
        return self._run


def _drops(listener: Listener) -> int | None:
    """Return what the system has dropped at a listener of datagrams; others have no such thing."""
    dropped: int | None = getattr(listener, "dropped", 0)
    return dropped


def _sum(counts: Sequence[int | None]) -> int | None:
    """Return the sum, if all are known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _adapted(accept: Callable[[], tuple[Request, Address]], adapt: Callable[[Request], Request]) -> tuple[Request, Address]:
    request, client_address = accept()
    return adapt(request), client_address


def compose(spec: Mapping[str, Any]) -> Server:
    """Return the server that a mapping describes: the keys of one ``[servers.NAME]`` table of a configuration file.

    Raises: ConfigError with every fault of the mapping, by key; IncompatibleError.
    """
    parts = config.composition(spec)
    server = Server(parts.listen, parts.handler, dispatcher=parts.dispatcher, lifecycle=parts.lifecycle, limits=parts.limits)
    server._observe(Catalog.load().observers(server))  # noqa: SLF001 - the other half of its constructor
    return server


@atexit.register
def _stop_started() -> None:
    for server in list(_started):
        server.stop()
