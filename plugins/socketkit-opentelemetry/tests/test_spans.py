"""Each request is a span, current in its handler, whatever runs it."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from otel_helpers import LATE, Ended, Spans, ask, serving
from socketkit_opentelemetry import OpenTelemetry

from socketkit import AsyncStreamRequestHandler, ConversationHandler, DatagramRequestHandler, Server, StreamRequestHandler
from socketkit.testing import FakeClock
from socketkit.testing.clients import connect, talk


class Works(StreamRequestHandler):
    """Does its work in a span of its own."""

    def handle(self):
        with self.server.tracer.start_as_current_span("work"):
            self.wfile.write(self.rfile.readline())


class AsyncWorks(AsyncStreamRequestHandler):
    async def handle(self):
        with self.server.tracer.start_as_current_span("work"):
            self.writer.write(await self.reader.readline())


class Asks(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline()
        with self.server.tracer.start_as_current_span(line.decode().strip()):
            self.wfile.write(line)
        self.close_connection = line == b"last\n"


class Fails(StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        raise LookupError("nothing of that name")


@pytest.mark.parametrize(
    ("handler", "dispatcher"),
    [*((Works, each) for each in ("sync", "thread", "pool:2", "adaptive", "executor", "asyncio")), (AsyncWorks, "asyncio")],
)
def test_a_request_is_a_span_and_its_handlers_spans_are_its_children(spans, handler, dispatcher):
    before = time.time_ns()
    with serving(handler, spans, dispatcher) as server:
        client = ask(server, b"hello\n")
        server.ended.wait()
        server_address = server.addresses[0]

    work, request = spans.get_finished_spans()
    assert (work.name, request.name) == ("work", handler.__name__)
    assert work.parent == request.context
    assert request.parent is None
    assert request.kind is SpanKind.SERVER
    assert request.status.status_code is StatusCode.UNSET
    assert before <= request.start_time <= work.start_time <= work.end_time <= request.end_time
    attributes = dict(request.attributes)
    assert attributes.pop("socketkit.wait") >= 0
    assert attributes == {
        "client.address": "127.0.0.1",
        "client.port": client[1],
        "network.peer.address": "127.0.0.1",
        "network.peer.port": client[1],
        "network.transport": "tcp",
        "network.type": "ipv4",
        "server.address": "127.0.0.1",
        "server.port": server_address[1],
        "code.function.name": f"{handler.__module__}.{handler.__name__}",
        "socketkit.dispatcher": type(server.dispatcher).__name__,
        "socketkit.outcome": "finished",
    }


def test_each_request_has_a_trace_of_its_own(spans):
    with serving(Works, spans, "sync") as server:
        for _ in range(3):
            ask(server, b"hello\n")
        server.ended.wait(3)
    traces = [span.context.trace_id for span in spans.get_finished_spans()]
    assert traces[0::2] == traces[1::2]
    assert len(set(traces)) == 3


def test_a_span_of_the_program_is_no_parent_of_requests(spans):
    class Stops(Works):
        def handle(self):
            super().handle()
            self.server.stop()

    client = None

    class Started:
        """Connects as soon as the listener is open."""

        def server_started(self, server):
            nonlocal client
            client = connect(server.addresses[0], "stream", LATE)
            client.sendall(b"hello\n")

    server = Server("tcp://127.0.0.1:0", Stops, dispatcher="sync", observers=[OpenTelemetry(tracer_provider=spans.provider), Started()])
    server.tracer = spans.provider.get_tracer("program")
    with server, server.tracer.start_as_current_span("program"):
        server.serve_forever()
    client.close()
    found = spans.by_name()
    assert found["Stops"].parent is None
    assert found["work"].parent == found["Stops"].context


def test_a_parked_conversation_is_one_span(spans):
    with serving(Asks, spans, "adaptive") as server:
        ask(server, b"first\n", b"second\n", b"last\n")
        server.ended.wait()
    *requests, conversation = spans.get_finished_spans()
    assert [span.name for span in requests] == ["first", "second", "last"]
    assert all(span.parent == conversation.context for span in requests)
    assert conversation.name == "Asks"


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "adaptive", "asyncio"])
def test_a_handler_that_raises_makes_its_span_an_error(spans, dispatcher, caplog):
    with caplog.at_level(logging.CRITICAL, "socketkit"), serving(Fails, spans, dispatcher) as server:
        ask(server, b"hello\n")
        server.ended.wait()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "LookupError: nothing of that name"
    assert span.attributes["error.type"] == "LookupError"
    assert span.attributes["socketkit.outcome"] == "failed"
    [event] = span.events
    assert event.name == "exception"
    assert "Fails" in event.attributes["exception.stacktrace"] or "in handle" in event.attributes["exception.stacktrace"]


class Exits(StreamRequestHandler):
    def handle(self):
        raise SystemExit(3)


class IsCancelled(AsyncStreamRequestHandler):
    async def handle(self):
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("handler", "dispatcher", "name"),
    [
        (Exits, "sync", "SystemExit"),
        (Exits, "thread", "SystemExit"),
        (Exits, "adaptive", "SystemExit"),
        (IsCancelled, "asyncio", "asyncio.exceptions.CancelledError"),
    ],
)
def test_a_handler_that_exits_makes_its_span_an_error(spans, handler, dispatcher, name, caplog):
    with caplog.at_level(logging.CRITICAL, "socketkit"), serving(handler, spans, dispatcher) as server:
        ask(server)
        server.ended.wait()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == name
    assert [event.name for event in span.events] == ["exception"]


class Leaves(StreamRequestHandler):
    """Finds that its client has left."""

    def handle(self):
        self.rfile.readline()
        raise ConnectionResetError


def test_a_client_that_leaves_is_no_error(spans):
    with serving(Leaves, spans) as server:
        ask(server, b"hello\n")
        server.ended.wait()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["socketkit.outcome"] == "aborted"
    assert "error.type" not in span.attributes
    assert not span.events


class Waits(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"go on\n")
        self.rfile.read()


def test_a_request_that_times_out_is_an_error(spans):
    clock = FakeClock()
    with serving(Waits, spans, "thread", limits={"request": 5}, clock=clock) as server:
        with connect(server.addresses[0], "stream", LATE) as client, client.makefile("rb") as replies:
            assert replies.readline() == b"go on\n"
            clock.advance(6)
            server.ended.wait()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "timeout"
    assert span.attributes["socketkit.outcome"] == "timed out"


def test_a_refused_request_has_no_span(spans):
    with serving(Works, spans, limits={"deny": ["127.0.0.1"]}) as server:
        ask(server)
        server.ended.wait()
    assert server.ended.outcomes == ["refused"]
    assert spans.get_finished_spans() == ()


class Answers(DatagramRequestHandler):
    def handle(self):
        with self.server.tracer.start_as_current_span("work"):
            self.wfile.write(self.rfile.read())


def test_a_datagram_is_a_span(spans):
    with serving(Answers, spans, url="udp://127.0.0.1:0") as server:
        with connect(server.addresses[0], "datagram", LATE) as client:
            client.send(b"hello")
            assert client.recv(10) == b"hello"
            port = client.getsockname()[1]
        server.ended.wait()
    request = spans.by_name()["Answers"]
    assert spans.by_name()["work"].parent == request.context
    assert request.attributes["network.transport"] == "udp"
    assert request.attributes["client.port"] == port
    assert "network.peer.port" not in request.attributes


def test_a_unix_socket_is_named_by_its_path(spans, tmp_path):
    path = str(tmp_path / "socket")
    with serving(Works, spans, url=f"unix://{path}") as server:
        ask(server, b"hello\n")
        server.ended.wait()
    attributes = spans.by_name()["Works"].attributes
    assert attributes["network.transport"] == "unix"
    assert attributes["server.address"] == path
    assert not {"server.port", "client.address", "network.peer.address"} & set(attributes)


def test_the_client_that_a_proxy_names_is_not_the_peer(spans):
    with serving(Works, spans, url="tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1") as server:
        with connect(server.addresses[0], "stream", LATE) as client, client.makefile("rb") as replies:
            client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\nhello\n")
            assert replies.readline() == b"hello\n"
            port = client.getsockname()[1]
        server.ended.wait()
    attributes = spans.by_name()["Works"].attributes
    assert (attributes["client.address"], attributes["client.port"]) == ("192.0.2.7", 5000)
    assert (attributes["network.peer.address"], attributes["network.peer.port"]) == ("127.0.0.1", port)


def test_a_sampler_decides_for_the_request_and_its_children(spans):
    spans.provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)

    class Tells(StreamRequestHandler):
        def handle(self):
            span = trace.get_current_span()
            self.wfile.write(f"{span.get_span_context().is_valid} {span.is_recording()}\n".encode())

    with serving(Tells, spans) as server:
        assert talk(server.addresses[0], b"") == b"True False\n"


def test_a_server_is_recorded_by_one_observer_only(spans):
    second = Spans()
    ended = Ended()
    observers = [OpenTelemetry(tracer_provider=spans.provider), OpenTelemetry(tracer_provider=second.provider), ended]
    with Server("tcp://127.0.0.1:0", Works, observers=observers) as server:
        server.tracer = spans.provider.get_tracer("handler")
        server.start()
        ask(server, b"hello\n")
        ended.wait()
    assert len(spans.get_finished_spans()) == 2
    assert second.get_finished_spans() == ()


def test_a_flush_timeout_is_a_number_of_seconds():
    with pytest.raises(ValueError, match="flush_timeout must be 0 or more seconds"):
        OpenTelemetry(flush_timeout=-1)
