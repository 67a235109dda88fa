"""What a server's meter provider collects."""

from __future__ import annotations

import contextlib

import pytest
from otel_helpers import LATE, ask, serving
from socketkit_opentelemetry import OpenTelemetry

from socketkit import DatagramRequestHandler, Server, StreamRequestHandler
from socketkit.testing.clients import connect


class Echoes(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())


@pytest.fixture
def observers(spans, measurements):
    return [OpenTelemetry(tracer_provider=spans.provider, meter_provider=measurements.provider)]


@pytest.mark.parametrize("dispatcher", ["sync", "pool:2", "adaptive"])
def test_requests_are_measured(spans, measurements, observers, dispatcher):
    with serving(Echoes, spans, dispatcher, observers=observers) as server:
        for _ in range(3):
            ask(server, b"hello\n")
        server.ended.wait(3)
        found = measurements.take()
        labels = {"socketkit.url": server.urls[0], "socketkit.dispatcher": type(server.dispatcher).__name__}
    finished = {**labels, "socketkit.outcome": "finished"}

    [(attributes, duration)] = found["socketkit.server.request.duration"]
    assert attributes == finished
    assert duration.count == 3
    assert 0 < duration.sum < 3 * LATE
    [(attributes, wait)] = found["socketkit.server.request.wait_time"]
    assert attributes == labels
    assert wait.count == 3
    assert wait.sum <= duration.sum
    assert [(each, point.value) for each, point in found["socketkit.server.requests"]] == [(finished, 3)]
    assert [(each, point.value) for each, point in found["socketkit.server.active_requests"]] == [(labels, 0)]


def test_a_refused_request_is_counted(spans, measurements, observers):
    with serving(Echoes, spans, observers=observers, limits={"deny": ["127.0.0.1"]}) as server:
        ask(server)
        server.ended.wait()
        found = measurements.take()
    [(attributes, point)] = found["socketkit.server.requests"]
    assert (attributes["socketkit.outcome"], point.value) == ("refused", 1)
    [(attributes, point)] = found["socketkit.server.request.duration"]
    assert (attributes["socketkit.outcome"], point.count) == ("refused", 1)
    assert "socketkit.server.request.wait_time" not in found


class Holds(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"here\n")
        self.rfile.readline()


def test_requests_in_progress_are_counted(spans, measurements, observers):
    with serving(Holds, spans, observers=observers) as server, contextlib.ExitStack() as clients:
        for _ in range(2):
            client = clients.enter_context(connect(server.addresses[0], "stream", LATE))
            assert client.recv(10) == b"here\n"
        [(_, point)] = measurements.take()["socketkit.server.active_requests"]
        assert point.value == 2


def test_counts_outlive_the_server(spans, measurements, observers):
    url = None
    for expected in (1, 2):
        with serving(Echoes, spans, url=url or "tcp://127.0.0.1:0", observers=observers) as server:
            url = server.urls[0]
            ask(server, b"hello\n")
            server.ended.wait()
        found = measurements.take()
        assert [point.value for _, point in found["socketkit.server.requests"]] == [expected]
        assert "socketkit.server.active_requests" not in found


def test_counts_of_a_second_run_are_those_of_that_run(spans, measurements, observers):
    server = Server("tcp://127.0.0.1:0", Echoes, observers=observers)
    with server:
        url = server.urls[0]
        server.start()
        ask(server, b"hello\n")
        server.stop()
        server.start()
        server.stop()
    assert [(each["socketkit.url"], point.value) for each, point in measurements.take()["socketkit.server.requests"]] == [(url, 1)]


def test_queues_are_observed_by_listener(spans, measurements, observers):
    with serving(Echoes, spans, observers=observers) as server:
        if not server.stats().queues:
            pytest.skip("this system does not report queues")
        found = measurements.take()
        assert [(each["socketkit.url"], point.value) for each, point in found["socketkit.server.queue.length"]] == [(server.urls[0], 0)]
        [(_, limit)] = found["socketkit.server.queue.limit"]
        assert limit.value == server.stats().queues[server.urls[0]].limit


class Answers(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())


def test_dropped_datagrams_are_observed(spans, measurements, observers):
    with serving(Answers, spans, url="udp://127.0.0.1:0", observers=observers) as server:
        if server.stats().dropped is None:
            pytest.skip("this system does not report dropped datagrams")
        [(_, point)] = measurements.take()["socketkit.server.dropped_datagrams"]
        assert point.value == 0


def test_the_last_requests_of_a_span_are_exemplars(spans, measurements, observers):
    with serving(Echoes, spans, observers=observers) as server:
        ask(server, b"hello\n")
        server.ended.wait()
        found = measurements.take()
    [span] = spans.get_finished_spans()
    [(_, duration)] = found["socketkit.server.request.duration"]
    assert [exemplar.trace_id for exemplar in duration.exemplars] == [span.context.trace_id]
