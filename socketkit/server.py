"""The server: it composes a transport, a dispatcher and a lifecycle, and runs each request through its template methods."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from socketkit._engine.composed import ComposedEngine, note_started, started
from socketkit._engine.observers import Observers
from socketkit._engine.run import Run
from socketkit._engine.steps import ENGINE, RequestTemplate, own_step
from socketkit._engine.stopping import Stopping
from socketkit._system.threads import aside
from socketkit._system.tls import has_left
from socketkit.composition import capabilities, config
from socketkit.composition.catalog import Catalog
from socketkit.composition.explanation import Explanation, explain
from socketkit.dispatchers.adaptive import Adaptive
from socketkit.errors import ConfigError
from socketkit.lifecycles.graceful import Graceful
from socketkit.logs import Log
from socketkit.seams import Address, Clock, Dispatcher, Lifecycle, Request, State, Transport
from socketkit.seams.limits import Limits
from socketkit.seams.stats import DrainReport, Stats

if TYPE_CHECKING:
    from types import TracebackType

log = Log("socketkit.server")

SLICE = 0.1
"""Seconds between checks whether a program runs on only for its servers: a thread that it has besides may begin to run a request."""


class Server(RequestTemplate):
    """A server composed from parts.

    Args:
        transport: where requests come from: a recipe, a URL such as ``tcp://127.0.0.1:9999``, or a list of these. A host and a port,
            as in ``("127.0.0.1", 9999)``, mean TCP, as for classic servers.
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
    and entering ``with`` do, and raise ListenError, or ConfigError if a layer cannot start. Leaving ``with`` stops and closes the server.

    All methods may be called from any thread. The template methods (`get_request` to `service_actions`) are those of the standard
    library and may be overridden; the dispatcher decides which thread or process calls them.
    """

    timeout: float | None = None
    """Seconds that `handle_request` waits for a request before it calls `handle_timeout`; None: no limit."""

    sends_empty_replies: bool = False
    """Whether a `DatagramRequestHandler` that wrote nothing sends an empty datagram, as it does under the classic servers."""

    dispatcher: Any = None
    lifecycle: Any = None

    # --- composing ---------------------------------------------------------------------------------------------------

    def __init__(  # noqa: PLR0913 - each is one part of the composition
        self,
        transport: Transport | str | tuple[str, int] | Sequence[Transport | str],
        handler: Callable[..., object] | str,
        *,
        dispatcher: Dispatcher | str | None = None,
        lifecycle: Lifecycle | str | None = None,
        limits: Limits | str | Mapping[str, Any] | None = None,
        observers: Iterable[object] = (),
        clock: Clock = time.monotonic,
    ) -> None:
        if isinstance(transport, tuple) and tuple(map(type, transport)) == (str, int):
            from socketkit.transports.tcp import TCP  # noqa: PLC0415 - for this form only

            transport = TCP(*transport)
        given = list(transport) if isinstance(transport, list | tuple) else [transport]
        self.transports: tuple[Transport, ...] = tuple(config.transport(each) for each in given)
        self.RequestHandlerClass: Any = config.handler(handler)
        self.dispatcher = Adaptive() if dispatcher is None else config.dispatcher(dispatcher)
        self.lifecycle = Graceful() if lifecycle is None else config.lifecycle(lifecycle)
        self.limits = Limits() if limits is None else config.limits(limits)
        capabilities.check(self.transports, self.dispatcher, self.lifecycle, self.RequestHandlerClass, self.limits)
        named = any(isinstance(part, str) for part in (*given, dispatcher, lifecycle))
        self._clock = clock
        observers = tuple(observers)
        if observers:
            capabilities.check_observers(observers)
        self._observe(observers)
        if named:
            self._observe((*observers, *Catalog.watching(self)))  # which look at the server: it has to be complete

    def _observe(self, observers: Iterable[object]) -> None:
        # The name is mangled, because programs give their servers attributes of any name.
        self.__engine = vars(self)[ENGINE] = ComposedEngine(self, Adaptive, Observers(observers), self._clock)

    @classmethod
    def _copied(cls, attributes: Mapping[str, Any], transports: Sequence[Transport], handler: Any, **parts: Any) -> Self:
        """Return a copy of a server in another interpreter, composed of copied parts, without the constructor of a subclass."""
        server = cls.__new__(cls)
        vars(server).update(attributes)
        Server.__init__(server, transports, handler, **parts)
        return server

    def __repr__(self) -> str:
        where = ", ".join(self.urls)
        return f"<{type(self).__name__} {where} {self.state.value}>"

    # --- serving -----------------------------------------------------------------------------------------------------

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the calling thread until stopped.

        poll_interval: the longest time in seconds between two calls of an overridden `service_actions`; it affects nothing else.
        Raises: ListenError; AlreadyServingError; any error that ended serving early.
        """
        run = self.__engine.begin(poll_interval)
        try:
            self.__engine.serve(run)
        finally:
            self.__engine.finish(run)

    def start(self) -> Self:
        """Serve in a background thread; return the server once it takes requests. It is stopped when the program exits.

        Raises: as `serve_forever`.
        """
        run = self.__engine.begin(0.5)
        try:
            if not run.stopping:
                self.__engine.prepare()
        except BaseException as error:
            run.error = error
            self.__engine.finish(run)
            raise
        threading.Thread(target=self._serve_in_background, args=(run,), name="socketkit-serve", daemon=True).start()
        run.started.wait()
        if run.error is not None and run.done.is_set():
            raise run.error
        note_started(self.__engine)
        _stop_before_threads_are_joined()
        atexit.unregister(_stop_started)
        atexit.register(_stop_started)  # after what the parts have registered, so called before it
        return self

    def _serve_in_background(self, run: Run) -> None:
        try:
            self.__engine.serve(run)
        except Exception:
            log.exception("%r: serving ended early", self)
        finally:
            self.__engine.finish_thread(run)

    def connect(self, url: str | None = None) -> socket.socket:
        """Return the socket of a new client of this server, connected to a `Memory` transport. Owner: the caller.

        url: the URL of that transport, if the server has several; None: the first.
        Raises: ConnectionRefusedError if the server does not listen; ConfigError if it has no such transport; OSError.
        """
        listeners = self.__engine.listeners
        if not listeners:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{self!r} does not listen; call start(), or enter it with `with`")
        for listener in listeners:
            connect = getattr(listener, "connect", None)
            if connect is not None and url in {None, listener.url}:
                client: socket.socket = connect()
                return client
        raise ConfigError.of(f"{self!r} has no transport {url or 'memory://'} to connect to; add it to its transports")

    def handle_request(self) -> None:
        """Serve one request. If none arrives within `timeout` seconds, call `handle_timeout` instead."""
        unit = self.__engine.take_one(self.timeout)
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
        return self.__engine.stop(drain, wait=wait)

    def shutdown(self) -> None:
        """Stop serving: the classic name of `stop`."""
        self.__engine.stop(None, wait=True)

    def server_close(self) -> None:
        """Stop, close the listeners, and wait for running requests up to the lifecycle's drain time. May be called repeatedly.

        From a handler it returns at once; the serving thread, or the next call, does the rest.
        """
        engine = self.__engine
        if engine.run is not None:
            engine.stop(None, wait=True)
        engine.close_listeners()
        if engine.run is None:  # otherwise this is a call from within the run, which needs the live dispatcher to end
            joined = not getattr(self.dispatcher, "daemon", False)  # as the classic classes leave daemons alone here
            engine.close(getattr(self.lifecycle, "drain", None), wait=joined)

    def __enter__(self) -> Self:
        self.__engine.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server_close()

    # --- seeing inside -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The current state of the server."""
        run = self.__engine.run  # read once: the run may end at any moment
        return (self.__engine if run is None else run).phase.state

    @property
    def ready(self) -> bool:
        """Whether the server takes requests: true from when its loop runs until it is asked to stop.

        Under a dispatcher with worker processes, it becomes true when the first worker takes requests.
        """
        run = self.__engine.run
        return run is not None and run.ready

    @property
    def stopping(self) -> Stopping:
        """Whether the server is told to stop, for handlers that go on for long: ``is_set()``, and ``wait(timeout)`` as of an event.

        Set when the server takes no new requests any more: at the stop, or at the end of the lame duck. A handler that reads it when
        it begins keeps that of its own run. Under a dispatcher with workers it is that of the worker; a child of `fork` is not told.
        """
        return self.__engine.stopping

    @property
    def addresses(self) -> list[Address]:
        """The address of each listener, as `socket.getsockname` gives it; empty unless open."""
        return [listener.address for listener in self.__engine.listeners]

    @property
    def urls(self) -> list[str]:
        """The URL of each listener, with the address and port that it is bound to; while not open, the URL of each transport."""
        return [each.url for each in self.__engine.listeners or self.transports]

    @property
    def max_handlers(self) -> int | None:
        """Most handlers that run at once, in all processes together; None: not known, or no limit. In a worker process: in that one."""
        return self.__engine.max_handlers

    def stats(self) -> Stats:
        """Return the counts of requests so far; `accepted == active + sum(outcomes)` in every reading."""
        return self.__engine.stats()

    def explain(self, *, defaults: bool = True) -> Explanation:
        """Return the resolved composition, ready to print: each part, its supplier, each option and whether it is a default.

        defaults: include the options that have their default values.
        """
        explanation = explain(self.transports, self.RequestHandlerClass, self.dispatcher, self.lifecycle, self.limits)
        return explanation if defaults else explanation.without_defaults()

    # --- the template: what a request goes through -------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the first listener's descriptor."""
        return self.__engine.listeners[0].fileno()

    @own_step
    def get_request(self) -> tuple[Request, Address]:
        """Return a waiting request and its peer, from the first listener that has one. Raises: BlockingIOError if none has."""
        for listener in self.__engine.listeners:
            with contextlib.suppress(BlockingIOError):
                return listener.accept()
        raise BlockingIOError

    @own_step
    def process_request(self, request: Request, client_address: Address) -> None:
        """Hand the request to the dispatcher."""
        self.__engine.process(request, client_address)

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
        entry = self.__engine.ledger.find(request)
        say = log.debug if has_left(error) or (entry is not None and entry.is_cut) else log.error
        say("request from %s failed", client_address, error=error)


def compose(spec: Mapping[str, Any]) -> Server:
    """Return the server that a mapping describes, with the keys of a ``[servers.NAME]`` table in a configuration file.

    Raises: ConfigError with every fault of the mapping, by key; IncompatibleError.
    """
    return assemble(config.composition(spec))


def assemble(parts: config.Composition, *observers: object) -> Server:
    """Return the server of a composition, with these observers and those of the plugins. Nothing is bound. Raises: IncompatibleError."""
    server = Server(parts.listen, parts.handler, dispatcher=parts.dispatcher, lifecycle=parts.lifecycle, limits=parts.limits)
    server._observe((*observers, *Catalog.watching(server)))  # noqa: SLF001 - completes its constructor
    return server


@functools.cache  # once is enough
def _stop_before_threads_are_joined() -> None:
    """Have servers stopped before the end of the program joins their threads, which may wait for clients.

    An executor of the standard library joins its threads there. The later a function is registered, the sooner it is called.
    Source: CPython's threading.py, `_shutdown`, and concurrent/futures/thread.py.
    """
    try:
        import_module("concurrent.futures.thread")  # it registers its own function
        threading._register_atexit(_at_end_of_main_thread)  # type: ignore[attr-defined] # noqa: SLF001 - there is no public way
    except RuntimeError:  # too late
        _at_end_of_main_thread()


def _at_end_of_main_thread() -> None:
    if _other_threads():
        with contextlib.suppress(RuntimeError):  # the system has no thread left, or Python 3.12.0 and 3.12.1 start none this late
            aside(_stop_when_alone, "socketkit-end")  # without holding up the main thread, whose end they may wait for
    else:
        _stop_started()


def _stop_when_alone() -> None:
    while others := _other_threads():
        others[0].join(SLICE)
    _stop_started()


def _other_threads() -> list[threading.Thread]:
    """Return the threads that keep the program running, without those that run requests or belong to an executor."""
    pooled = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
    busy = {threading.main_thread().ident, *(entry.thread for engine in started() for entry in engine.ledger.active())}
    return [each for each in threading.enumerate() if not (each.daemon or each.ident in busy or each in pooled)]


def _stop_started() -> None:
    for engine in started():
        engine.server.stop()
