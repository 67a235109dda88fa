"""What the tests share: providers that keep what they get, a collector, and servers whose requests can be waited for."""

from __future__ import annotations

import contextlib
import os
import threading

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from socketkit_opentelemetry import OpenTelemetry

from socketkit import Server
from socketkit.testing.clients import connect

LATE = 20
"""Seconds after which something that is waited for counts as lost."""


class Spans(InMemorySpanExporter):
    """The finished spans of a provider."""

    def __init__(self):
        super().__init__()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self))

    def by_name(self):
        return {span.name: span for span in self.get_finished_spans()}


class Measurements:
    """The measurements of a provider."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def take(self):
        """Return each metric's data points, as a list of its attributes with its value."""
        data = self.reader.get_metrics_data()
        metrics = [] if data is None else [each for part in data.resource_metrics for scope in part.scope_metrics for each in scope.metrics]
        return {metric.name: [(dict(point.attributes), point) for point in metric.data.data_points] for metric in metrics}


class Collector:
    """Receives OTLP over HTTP on this machine, and keeps what arrives."""

    def __init__(self):
        self.spans, self.metrics = [], []
        self.arrived = threading.Condition()

    def receive(self, path, body):
        with self.arrived:
            if path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                self.spans += [span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
            else:
                request = ExportMetricsServiceRequest.FromString(body)
                self.metrics += [metric for part in request.resource_metrics for scope in part.scope_metrics for metric in scope.metrics]
            self.arrived.notify_all()

    def wait_for(self, count):
        """Return the spans once so many have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= count, LATE), self.spans
            return list(self.spans)


def sending_to(endpoint, **options):
    """Return the environment of a program that sends to a collector. options: of the SDK, by the names of their variables."""
    return {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **options}


def facts(thing):
    """Return the attributes of a span or a data point that was received."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in thing.attributes}


class Ended:
    """Lets a test wait for the end of requests."""

    def __init__(self):
        self.outcomes = []
        self.said = threading.Condition()

    def request_ended(self, server, client_address, outcome, seconds):
        with self.said:
            self.outcomes.append(outcome)
            self.said.notify_all()

    def wait(self, count=1):
        with self.said:
            assert self.said.wait_for(lambda: len(self.outcomes) >= count, LATE)


@contextlib.contextmanager
def serving(handler, spans, dispatcher="adaptive", url="tcp://127.0.0.1:0", observers=None, **options):
    """Serve with the observer, and with one more that says when requests have ended."""
    ended = Ended()
    observers = [OpenTelemetry(tracer_provider=spans.provider)] if observers is None else observers
    server = Server(url, handler, dispatcher=dispatcher, observers=[*observers, ended], **options)
    server.tracer, server.ended = spans.provider.get_tracer("handler"), ended
    with server.start():
        yield server


def ask(server, *lines):
    """Send lines to a server that echoes them, unless it closes instead; return the client's address."""
    with connect(server.addresses[0], "stream", LATE) as client, client.makefile("rb") as replies:
        for line in lines:
            client.sendall(line)
            assert replies.readline() in {line, b""}
        return client.getsockname()
