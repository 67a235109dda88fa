"""The metrics by their names: what Prometheus is told of the counts and the servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

import socketkit
from socketkit_prometheus._layout import Counts, Histogram

if TYPE_CHECKING:
    from socketkit import Server
    from socketkit_prometheus._metrics import Served


def families(counts: Counts, servers: Mapping[Server, Served]) -> Iterator[Metric]:
    """Yield all metrics of these servers, which the counts are of."""
    yield from _of_requests(counts)
    yield from _of_handlers(counts, [served.max_handlers for served in servers.values()])
    yield _gauge("workers_running", "Worker processes that serve.", counts.workers)
    yield _counter("workers_died", "Worker processes that ended without being asked to.", counts.workers_died)
    yield _counter("accept_pauses", "Times that a listener rested because the system had no descriptor or memory left.", counts.pauses)
    yield from _of_listeners(servers)
    yield from _of_servers(servers.values())


def _of_requests(counts: Counts) -> Iterator[Metric]:
    yield _counter("requests_accepted", "Connections accepted and datagrams received.", counts.accepted)
    yield _gauge("requests_active", "Accepted requests that have not ended, with or without a handler that runs.", counts.active)
    ended = CounterMetricFamily("socketkit_requests_ended", "Accepted requests that have ended, by outcome.", labels=["outcome"])
    for outcome, count in counts.outcomes.items():
        ended.add_metric([outcome.replace(" ", "_")], count)
    yield ended
    refused = CounterMetricFamily("socketkit_requests_refused", "Requests that were turned away, by reason.", labels=["reason"])
    for reason, count in counts.refusals.items():
        refused.add_metric([reason], count)
    yield refused


def _of_handlers(counts: Counts, limits: Iterable[int | None]) -> Iterator[Metric]:
    yield _histogram("handler_wait", "Time from the accept of a request until its handler began.", counts.waits)
    yield _histogram(
        "handler_duration", "Time that a handler ran, in one piece: until it returned or its connection was parked.", counts.durations
    )
    yield _gauge("handlers_running", "Handlers that run now.", counts.running)
    known = [limit for limit in limits if limit is not None]
    if known:
        yield _gauge("handlers_limit", "Handlers that can run at once.", sum(known))


def _of_listeners(servers: Mapping[Server, Served]) -> Iterator[Metric]:
    """Yield what the system knows of the listeners. It is asked now; a child without listeners says what its parent has read."""
    waiting = GaugeMetricFamily("socketkit_accept_queue_waiting", "Connections that wait to be accepted.", labels=["listener"])
    limit = GaugeMetricFamily("socketkit_accept_queue_limit", "Connections that may wait to be accepted.", labels=["listener"])
    expiry = GaugeMetricFamily(
        "socketkit_certificate_expiry_timestamp_seconds",
        "When a certificate in use expires, in seconds since 1970.",
        labels=["file"],
        unit="seconds",
    )
    dropped = []
    for server, served in servers.items():
        stats = server.stats()
        for url, queue in (stats.queues or served.queues).items():
            waiting.add_metric([url], queue.waiting)
            limit.add_metric([url], queue.limit)
        for file, moment in stats.expiries.items():
            expiry.add_metric([file], moment.timestamp())
        if stats.dropped is not None:
            dropped.append(stats.dropped)
    yield from (waiting, limit, expiry)
    if dropped:
        yield _counter("datagrams_dropped", "Datagrams that the system dropped because a receive buffer was full.", sum(dropped))


def _of_servers(servers: Iterable[Served]) -> Iterator[Metric]:
    info = InfoMetricFamily("socketkit_server", "The server.", labels=["dispatcher", "lifecycle"])
    for dispatcher, lifecycle in {(served.dispatcher, served.lifecycle): None for served in servers}:
        info.add_metric([dispatcher, lifecycle], {"version": socketkit.__version__})
    yield info
    moments = [served.started for served in servers]
    if moments:
        yield _gauge("server_start_time", "When the server started, in seconds since 1970.", min(moments), unit="seconds")


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"socketkit_{name}", documentation, value=value)


def _gauge(name: str, documentation: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(f"socketkit_{name}", documentation, value=value, unit=unit)


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    labels = [*map(str, map(float, histogram.bounds)), "+Inf"]
    return HistogramMetricFamily(
        f"socketkit_{name}",
        documentation,
        buckets=list(zip(labels, histogram.counts, strict=True)),
        sum_value=histogram.total,
        unit="seconds",
    )
