"""The observer: a span for each request, and measurements of each server."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from opentelemetry import context, metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from socketkit.logs import Log
from socketkit.seams import Address, Request, Seconds, seconds
from socketkit_opentelemetry import _attributes as names
from socketkit_opentelemetry._metrics import Instruments, Labels, instruments

log = Log("socketkit_opentelemetry")

FAULTS = frozenset({"failed", "timed out"})
"""The outcomes that make a span an error. A client that leaves ("aborted"), or a limit that does its work ("refused"), is none.

So it is in the conventions for RPC, where CANCELLED is no error of a server, and DEADLINE_EXCEEDED is one.
"""


@attrs.define(eq=False, kw_only=True)
class OpenTelemetry:
    """An observer that records a span for each request, and measures each server.

    One observer may watch any number of servers. If a server has several of this class, only the first records it.
    """

    tracer_provider: TracerProvider | None = None
    """Where spans go; None: to the program's own provider, even if it is set later."""
    meter_provider: MeterProvider | None = None
    """Where measurements go; None: to the program's own provider, even if it is set later."""
    flush_timeout: Seconds = attrs.field(default=1.0, validator=seconds)
    """Seconds that a process which a dispatcher has forked may take, before it exits, to send what it has recorded."""

    tracer: Tracer = attrs.field(init=False, repr=False)
    _instruments: Instruments = attrs.field(init=False, repr=False)
    _has_warned: mmap.mmap = attrs.field(init=False, repr=False, factory=lambda: mmap.mmap(-1, 1))
    """One byte that all forked processes share: whether one of them has complained that it could not send its spans."""

    def __attrs_post_init__(self) -> None:
        self.tracer = trace.get_tracer(names.SCOPE, names.VERSION, self.tracer_provider)
        self._instruments = instruments(self.meter_provider)

    # --- events ------------------------------------------------------------------------------------------------------

    def server_started(self, server: Any) -> None:
        """Describe the server anew, because it knows its addresses now; read its counts from now on."""
        if self._watch(server) is not None:
            watched = _watched[server] = _Watched.of(server, self)
            self._instruments.started(server, watched.labels)

    def server_stopped(self, server: Any, _report: object) -> None:
        """Note the last counts of the run."""
        if self._watch(server) is not None:
            self._instruments.stopped(server)

    def handler_entered(self, server: Any, request: Request, client_address: Address, seconds: float | None) -> None:
        """Begin the request's span when it was accepted, and make it current. In a parked conversation it is current already."""
        watched = self._watch(server)
        if watched is None or seconds is None:
            return
        began = time.time_ns() - round(seconds * 1e9)
        attributes = watched.attributes | names.of_address("client", client_address)
        # in an empty context: a span of the program that is current in the serving thread has nothing to do with the request
        span = self.tracer.start_span(watched.name, context.Context(), SpanKind.SERVER, attributes, start_time=began)
        context.attach(trace.set_span_in_context(span))  # for good: the context is the request's own
        if span.is_recording():
            span.set_attributes({**names.of_request(request), names.WAIT: seconds})
        _serving.set(_Serving(self, server, span))
        if not watched.forks_requests:  # a process for one request sends no metrics: each would be a series of its own
            self._instruments.wait.record(seconds, watched.labels_here())

    def request_failed(self, server: Any, _client_address: Address, error: BaseException) -> None:
        """Keep the error for the span, if the request's handler runs."""
        serving = _serving.get(None)
        if serving is not None and serving.is_of(self, server):
            serving.error = error

    def handler_left(self, server: Any, _client_address: Address, outcome: str | None, _seconds: float) -> None:
        """End the span, unless the conversation is parked."""
        serving = _serving.get(None)
        if outcome is not None and serving is not None and serving.is_of(self, server):
            serving.end(outcome)

    def request_ended(self, server: Any, _client_address: Address, outcome: str, seconds: float) -> None:
        """Measure the request."""
        watched = self._watch(server)
        if watched is not None:
            self._instruments.duration.record(seconds, {**watched.labels_here(), names.OUTCOME: outcome})

    def process_ending(self, server: Any) -> None:
        """Send what this process has recorded, within `flush_timeout`: its providers' own clean-up is not called before it exits."""
        watched = self._watch(server)
        if watched is None:
            return
        providers: list[object] = [self.tracer_provider or trace.get_tracer_provider()]
        if watched.has_measured_here:
            providers.append(self.meter_provider or metrics.get_meter_provider())
        flushes = [each.force_flush for each in providers if hasattr(each, "force_flush")]  # the API's own providers have none
        if flushes and not _call_within(self.flush_timeout, flushes) and not self._has_warned[0]:
            self._has_warned[0] = 1
            log.warning(
                "process %d could not send its spans within %g s, so some are lost; see whether the collector answers, or raise flush_timeout",
                os.getpid(),
                self.flush_timeout,
            )

    # --- inside ------------------------------------------------------------------------------------------------------

    def _watch(self, server: Any) -> _Watched | None:
        """Return what is known of a server; None if another observer records it."""
        watched = _watched.get(server)
        if watched is None:
            watched = _watched.setdefault(server, _Watched.of(server, self))
        return watched if watched.observer is self else None


@attrs.define(eq=False)
class _Watched:
    """A server, as its spans and measurements name it."""

    observer: OpenTelemetry
    name: str
    """The name of its spans."""
    attributes: dict[str, str | int]
    """What its spans have in common. Samplers see these."""
    labels: Labels
    """What its measurements have in common."""
    forks_requests: bool
    _measured_by: int = 0
    _labels_here: Labels = attrs.field(factory=dict)

    @classmethod
    def of(cls, server: Any, observer: OpenTelemetry) -> _Watched:
        dispatchers = [server.dispatcher]
        if inner := getattr(server.dispatcher, "inner", None):
            dispatchers.append(inner)
        dispatcher = "/".join(type(each).__name__ for each in dispatchers)
        handler = server.RequestHandlerClass
        function = getattr(handler, "__qualname__", None) or type(handler).__qualname__
        module = getattr(handler, "__module__", None) or type(handler).__module__
        attributes: dict[str, str | int] = {names.FUNCTION: f"{module}.{function}", names.DISPATCHER: dispatcher}
        if len(server.addresses) == 1:
            attributes |= names.of_address("server", server.addresses[0])
        labels = {names.URL: server.urls[0], names.DISPATCHER: dispatcher}
        return cls(
            observer, function.rpartition(".")[2], attributes, labels, any(getattr(each, "forks_requests", False) for each in dispatchers)
        )

    @property
    def has_measured_here(self) -> bool:
        """Whether this process has measured requests, and is no copy of the one that has."""
        return self._measured_by == os.getpid()

    def labels_here(self) -> Labels:
        """Return the labels of what this process measures. A worker's name it: its provider sends totals of its own."""
        pid = os.getpid()
        if self._measured_by != pid:
            is_worker = pid != self.observer._instruments.pid  # noqa: SLF001 - one unit
            self._labels_here = {**self.labels, names.PROCESS: pid} if is_worker else self.labels
            self._measured_by = pid
        return self._labels_here


_watched: WeakKeyDictionary[Any, _Watched] = WeakKeyDictionary()
"""Each server that an observer of this process has heard of."""


@attrs.define(eq=False)
class _Serving:
    """A request whose handler runs, or is parked."""

    observer: OpenTelemetry
    server: Any
    span: Span
    error: BaseException | None = None

    def is_of(self, observer: OpenTelemetry, server: Any) -> bool:
        """Return whether this observer began it for this server, and not one outside, whose handler serves with a server of its own."""
        return self.observer is observer and self.server is server

    def end(self, outcome: str) -> None:
        error, self.error = self.error, None  # whose traceback refers to the handler
        try:
            if self.span.is_recording():
                self._conclude(outcome, error)
        finally:
            self.span.end()

    def _conclude(self, outcome: str, error: BaseException | None) -> None:
        self.span.set_attribute(names.OUTCOME, outcome)
        if outcome not in FAULTS:
            return
        self.span.set_attribute(names.ERROR_TYPE, "timeout" if error is None else names.type_name(error))
        if error is None:
            self.span.set_status(Status(StatusCode.ERROR, outcome))
        else:
            self.span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            self.span.record_exception(error)


_serving: ContextVar[_Serving] = ContextVar("socketkit_opentelemetry_serving")


def tracer() -> Tracer:
    """Return the tracer of the request whose handler runs; elsewhere, that of the program."""
    serving = _serving.get(None)
    return trace.get_tracer(names.SCOPE, names.VERSION) if serving is None else serving.observer.tracer


def _call_within(seconds: float, functions: Iterable[Callable[[int], object]]) -> bool:
    """Call the functions in a thread, each with the limit in milliseconds; return whether none failed or was late.

    In a thread, because the providers of the SDK wait for an exporter regardless of the limit.
    """
    done: list[bool] = []

    def call() -> None:
        done.extend(function(round(seconds * 1000)) is not False for function in functions)

    thread = threading.Thread(target=call, name="socketkit-opentelemetry", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive() and all(done)
