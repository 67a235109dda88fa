"""End to end: programs send OTLP over HTTP to a collector on this machine, from every process that serves."""

from __future__ import annotations

import os
import socket
from collections import Counter

import pytest
from otel_helpers import LATE, facts, sending_to

from socketkit.testing.clients import address, connect
from socketkit.testing.programs import Program, python

SERVER = """
import os, sys
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from socketkit import Server, StreamRequestHandler
from socketkit_opentelemetry import OpenTelemetry

tracers = TracerProvider()
tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(tracers)
if "metrics" in sys.argv:
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))

class Works(StreamRequestHandler):
    def handle(self):
        with trace.get_tracer("handler").start_as_current_span("work") as span:
            span.set_attribute("process.pid", os.getpid())
            self.wfile.write(b"%d\\n" % os.getpid())
            self.rfile.readline()

observers = [OpenTelemetry(flush_timeout=float(sys.argv[2]))] if sys.argv[2] else []
with Server("tcp://127.0.0.1:0", Works, dispatcher=sys.argv[1], lifecycle="graceful:drain=10", observers=observers) as server:
    print("serving", *server.urls, flush=True)
    server.serve_forever()
print("stopped", flush=True)
"""


class Visit:
    """A client in its handler, which knows its process."""

    def __init__(self, where):
        self.client = connect(where, "stream", LATE)
        self.replies = self.client.makefile("rb")
        self.pid = int(self.replies.readline())

    def end(self):
        """Let the handler return, and wait for the end of the stream."""
        with self.client, self.replies:
            self.client.sendall(b"\n")
            assert self.replies.read() == b""
        return self.pid


def serve(dispatcher, *arguments, **environment):
    """Return the server as a program. arguments: the flush timeout, "" for the usual one, and "metrics" if it measures."""
    return Program.python("-c", SERVER, dispatcher, *arguments, **environment)


def place(program):
    return address(program.line(r"^serving (\S+)")[0][1])


def stop(program):
    """End the server as a service manager does, and return its output."""
    assert program.stop() == 0, program.output
    assert "stopped\n" in program.output
    return program.output


@pytest.mark.parametrize("delay", ["60000", "20"], ids=["sent at the end", "sent at once"])
@pytest.mark.parametrize("dispatcher", ["prefork:2/sync", "prefork:2/pool:2", "prefork:2/fork", "fork", "adaptive"])
def test_all_spans_of_all_processes_arrive_once(collector, dispatcher, delay):
    served = []
    with serve(dispatcher, "", env=sending_to(collector.endpoint, OTEL_BSP_SCHEDULE_DELAY=delay)) as program:
        where = place(program)
        for _ in range(3):
            visits = [Visit(where), Visit(where)]  # under prefork:2/sync, each in a worker of its own
            served += [visit.end() for visit in visits]
        stop(program)

    spans = collector.wait_for(2 * len(served))
    assert len({span.span_id for span in spans}) == len(spans) == 2 * len(served)
    requests = {span.span_id: span for span in spans if span.name == "Works"}
    works = [span for span in spans if span.name == "work"]
    assert Counter(facts(span)["process.pid"] for span in works) == Counter(served)
    assert {span.parent_span_id for span in works} == set(requests)
    assert {span.trace_id for span in works} == {span.trace_id for span in requests.values()}
    assert len({span.trace_id for span in requests.values()}) == len(served)
    assert {facts(span)["socketkit.outcome"] for span in requests.values()} == {"finished"}
    if dispatcher == "prefork:2/sync":
        assert len(set(served)) == 2


def test_workers_and_parent_measure_apart(collector):
    with serve("prefork:2/sync", "", "metrics", env=sending_to(collector.endpoint)) as program:
        where = place(program)
        visits = [Visit(where), Visit(where)]
        served = [visit.end() for visit in visits]
        stop(program)

    histograms = [metric for metric in collector.metrics if metric.name == "socketkit.server.request.duration"]
    last = {facts(point)["process.pid"]: point.count for metric in histograms for point in metric.histogram.data_points}
    assert last == dict.fromkeys(served, 1)
    counters = [metric for metric in collector.metrics if metric.name == "socketkit.server.requests"]
    *_, point = counters[-1].sum.data_points
    assert (facts(point)["socketkit.outcome"], point.as_int) == ("finished", 2)
    assert all("process.pid" not in facts(point) for metric in counters for point in metric.sum.data_points)


@pytest.fixture(params=[False, True], ids=["silent", "absent"])
def is_absent(request):
    return request.param


@pytest.fixture
def away(is_absent):
    """The environment of a program whose collector accepts connections and never answers, or is not there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if is_absent:
            listener.close()
        longer = "60"  # than the tests wait for anything
        yield sending_to(f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT=longer, OTEL_BSP_SCHEDULE_DELAY="20")


@pytest.mark.parametrize("dispatcher", ["prefork:2/sync", "prefork:2/pool:2"])
def test_a_stop_does_not_wait_for_a_collector_that_is_away(away, is_absent, dispatcher):
    with serve(dispatcher, "0.5", env=away) as program:
        where = place(program)
        for _ in range(3):
            visits = [Visit(where), Visit(where)]
            for visit in visits:
                visit.end()
        complaints = stop(program).count("could not send its spans within 0.5 s")
    assert complaints == 1 or (is_absent and complaints == 0)  # older exporters give up at once then, and say so


def test_a_client_does_not_wait_for_a_collector_that_is_away(away):
    with serve("fork", str(2 * LATE), env=away) as program:
        where = place(program)
        for _ in range(3):
            Visit(where).end()


IN_PROCESS = (
    SERVER.partition("observers =")[0]
    + """
import time
from socketkit.testing.clients import talk
with Server("tcp://127.0.0.1:0", Works, dispatcher=sys.argv[1]) as server:
    server.start()
    began = time.monotonic()
    for _ in range(200):
        assert talk(server.addresses[0], b"\\n")
    served = time.monotonic()
    server.stop()
    print(served - began, time.monotonic() - served, flush=True)
os._exit(0)
"""
)


@pytest.mark.parametrize("dispatcher", ["adaptive", "pool:2", "sync"])
def test_serving_goes_on_without_a_collector(away, dispatcher):
    ended = python(IN_PROCESS, dispatcher, env=away)
    serving, stopping = map(float, ended.stdout.split())
    assert serving < LATE / 2, ended.stderr  # 200 requests; one export would take a minute
    assert stopping < LATE / 4, ended.stderr


SWITCHED_OFF = """
import sys
from socketkit import Server
from socketkit.catalog import Catalog
urls = sys.argv[1:]
server = Server(urls, print)
print([type(each).__name__ for each in Catalog.load().observers(server)])
"""


@pytest.mark.parametrize(
    ("urls", "environment", "is_on"),
    [
        ("tcp://127.0.0.1:9999", {}, True),
        ("tcp://127.0.0.1:9999", {"OTEL_SDK_DISABLED": "true"}, False),
        ("tcp://127.0.0.1:9999", {"OTEL_SDK_DISABLED": "false"}, True),
        ("tcp://127.0.0.1:9999", {"OTEL_PYTHON_SOCKETKIT_EXCLUDED_URLS": "unix:, :9999$"}, False),
        ("tcp://127.0.0.1:9998", {"OTEL_PYTHON_SOCKETKIT_EXCLUDED_URLS": "unix:, :9999$"}, True),
        ("tcp://127.0.0.1:9998 unix:///run/x", {"OTEL_PYTHON_SOCKETKIT_EXCLUDED_URLS": "unix:, :9999$"}, False),
        ("tcp://127.0.0.1:9999", {"SOCKETKIT_DISABLED_PLUGINS": "opentelemetry"}, False),
    ],
)
def test_the_environment_switches_it_off(urls, environment, is_on):
    ended = python(SWITCHED_OFF, *urls.split(), env={**os.environ, **environment})
    assert ("OpenTelemetry" in ended.stdout) is is_on
