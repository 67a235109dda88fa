"""A handler of `http.server` continues the trace of its client."""

from __future__ import annotations

import http.client
from http.server import BaseHTTPRequestHandler

import pytest
from opentelemetry import baggage, trace
from opentelemetry.trace import SpanKind, StatusCode
from otel_helpers import LATE, serving
from socketkit_opentelemetry import continue_trace

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HEADER = f"00-{TRACE:032x}-{PARENT:016x}-01"


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with continue_trace(self.headers, "GET page", {"http.request.method": "GET", "url.path": self.path}) as span:
            if self.path == "/broken":
                self.reply(500)
                raise LookupError
            with self.server.tracer.start_as_current_span(f"render for {baggage.get_baggage('user')}"):
                self.reply(200)
            span.set_attribute("http.response.status_code", 200)

    def reply(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_words):
        """Say nothing."""


@pytest.fixture(params=["adaptive", "thread"])
def get(spans, request):
    """Send requests on one connection, each with its headers, then end it and return the spans by their end."""

    def get(*requests, path="/page"):
        with serving(Pages, spans, request.param) as server:
            host, port = server.addresses[0]
            client = http.client.HTTPConnection(host, port, timeout=LATE)
            for headers in requests:
                client.request("GET", path, headers=headers)
                client.getresponse().read()
            client.close()
            server.ended.wait()
        return spans.get_finished_spans()

    return get


def test_a_request_with_a_context_continues_its_trace_and_is_linked_to_its_connection(get):
    render, page, connection = get({"traceparent": HEADER, "baggage": "user=ada"})
    assert render.name == "render for ada"
    assert render.parent == page.context
    assert (page.context.trace_id, page.parent.span_id, page.parent.is_remote) == (TRACE, PARENT, True)
    assert page.kind is SpanKind.SERVER
    assert [link.context for link in page.links] == [connection.context]
    assert dict(page.attributes) == {"http.request.method": "GET", "url.path": "/page", "http.response.status_code": 200}
    assert connection.name == "Pages"
    assert connection.parent is None
    assert connection.context.trace_id != TRACE


def test_requests_of_one_connection_may_belong_to_different_traces(get):
    other = TRACE + 1
    *_, connection = found = get({"traceparent": HEADER}, {"traceparent": f"00-{other:032x}-{PARENT:016x}-01"}, {})
    pages = [span for span in found if span.name == "GET page"]
    assert [span.context.trace_id for span in pages] == [TRACE, other, connection.context.trace_id]


@pytest.mark.parametrize(
    "header", [None, "", "nonsense", HEADER + "\x7f", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + HEADER[2:], "\xe9" * 5000]
)
def test_without_a_valid_context_the_request_is_a_child_of_its_connection(get, header):
    render, page, connection = get({} if header is None else {"traceparent": header})
    assert render.name == "render for None"
    assert page.parent == connection.context
    assert page.links == ()


def test_an_exception_makes_both_spans_errors(get, caplog):
    with caplog.at_level("CRITICAL", "socketkit"):
        page, connection = get({"traceparent": HEADER}, path="/broken")
    for span in (page, connection):
        assert span.status.status_code is StatusCode.ERROR
        assert [event.name for event in span.events] == ["exception"]


def test_without_an_sdk_the_context_is_passed_on():
    with continue_trace({"traceparent": HEADER}, "offline") as span:
        assert not span.is_recording()
        assert trace.get_current_span().get_span_context().trace_id == TRACE  # for those that the program calls
