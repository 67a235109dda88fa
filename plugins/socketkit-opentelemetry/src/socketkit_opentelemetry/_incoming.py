"""Continuing the trace of a client, whose context a protocol carries in its headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind

from socketkit_opentelemetry._observer import tracer

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


@contextlib.contextmanager
def continue_trace(
    headers: Mapping[str, Any] | Message, name: str, attributes: Mapping[str, AttributeValue] | None = None
) -> Iterator[Span]:
    """Do the work of the block in a span that is part of the client's trace.

    A connection may carry requests of several traces, and a span has one parent. So this span has the client's as its parent, and a link
    to the span of the connection, which stays in a trace of its own. If the headers name no trace, or an invalid one, the span is a child
    of the connection's. An exception that leaves the block is recorded, and makes the span an error.

    headers: what the client has sent, such as `self.headers` of an `http.server` handler: `OTEL_PROPAGATORS` says which of them count;
        by default `traceparent`, `tracestate` and `baggage`. A client that sends them has a say in what is sampled, so pass on only those
        of clients that you trust.
    name: of the span, with few different values: "GET /items/{id}" instead of a path.
    Source: W3C Trace Context; OpenTelemetry's specification, "Links between spans".
    """
    connection = trace.get_current_span().get_span_context()
    incoming = propagate.extract(headers, context.get_current())
    is_continued = trace.get_current_span(incoming).get_span_context() != connection
    links = [Link(connection)] if is_continued and connection.is_valid else []
    token = context.attach(incoming)  # with the client's baggage
    try:
        with tracer().start_as_current_span(name, kind=SpanKind.SERVER, attributes=attributes, links=links) as span:
            yield span
    finally:
        context.detach(token)
