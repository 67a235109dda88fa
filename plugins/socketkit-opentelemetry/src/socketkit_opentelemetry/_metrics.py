"""The instruments of a meter provider, shared by all the servers that it measures."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import attrs
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from socketkit.seams import Stats
from socketkit_opentelemetry._attributes import FILE, OUTCOME, SCOPE, URL, VERSION

Labels: TypeAlias = Mapping[str, str | int]
"""The attributes of a measurement."""

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 60, 600)
"""Boundaries of the histograms in seconds: those of the conventions for HTTP, with shorter requests and longer connections besides."""


@attrs.frozen(eq=False)
class _Running:
    """A server that runs, and what it had counted before this run."""

    server: Any
    labels: Labels
    before: Counter[str]

    def outcomes(self) -> Counter[str]:
        return Counter(self.server.stats().outcomes) - self.before


class Instruments:
    """Histograms that are told of each request, and counts that are read from the servers when somebody collects them.

    The counts are read in the process that started the servers, where they include what its workers have served. A copy in a forked
    process, which its SDK also collects from, has none.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self.pid = os.getpid()
        """The process that started the servers."""
        self._running: dict[int, _Running] = {}
        self._past: Counter[tuple[frozenset[tuple[str, str | int]], str]] = Counter()  # outcomes of runs that are over
        self._lock = threading.Lock()  # an outcome moves from a run to the past at once
        meter = get_meter(SCOPE, VERSION, provider)
        self.duration = meter.create_histogram(
            "socketkit.server.request.duration",
            "s",
            "Duration of accepted requests, from their accept to their end.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.wait = meter.create_histogram(
            "socketkit.server.request.wait_time",
            "s",
            "Time from the accept of requests until their handlers began.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        meter.create_observable_counter(
            "socketkit.server.requests", [self._observe_outcomes], "{request}", "Accepted requests that have ended, by outcome."
        )
        for create, name, unit, description, read in (
            (meter.create_observable_up_down_counter, "active_requests", "{request}", "Accepted requests that have not ended.", _active),
            (meter.create_observable_up_down_counter, "queue.length", "{connection}", "Connections that wait to be accepted.", _waiting),
            (meter.create_observable_up_down_counter, "queue.limit", "{connection}", "Connections that may wait to be accepted.", _limit),
            (meter.create_observable_counter, "dropped_datagrams", "{datagram}", "Datagrams that the system has dropped.", _dropped),
            (meter.create_observable_gauge, "certificate.time_left", "s", "Time until the certificate expires.", _time_left),
        ):
            create(f"socketkit.server.{name}", [self._observing(read)], unit, description)

    def started(self, server: Any, labels: Labels) -> None:
        """Read the counts of a server from now on."""
        if self.pid != os.getpid():  # this process was forked, and starts servers of its own
            self.pid, self._running, self._past, self._lock = os.getpid(), {}, Counter(), threading.Lock()
        with self._lock:
            self._running[id(server)] = _Running(server, labels, Counter(server.stats().outcomes))

    def stopped(self, server: Any) -> None:
        """Keep what the run has counted, and let go of the server."""
        with self._lock:
            run = self._running.pop(id(server), None)
            if run is not None:
                for outcome, count in run.outcomes().items():
                    self._past[frozenset(run.labels.items()), outcome] += count

    def _observe_outcomes(self, _options: CallbackOptions) -> Iterable[Observation]:
        if self.pid != os.getpid():
            return
        with self._lock:
            totals = Counter(self._past)
            for run in self._running.values():
                for outcome, count in run.outcomes().items():
                    totals[frozenset(run.labels.items()), outcome] += count
        for (labels, outcome), count in totals.items():
            yield Observation(count, {**dict(labels), OUTCOME: outcome})

    def _observing(self, read: Callable[[Stats], Iterable[tuple[float, Labels]]]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            if self.pid != os.getpid():
                return
            with self._lock:
                running = list(self._running.values())
            for run in running:
                for value, more in read(run.server.stats()):
                    yield Observation(value, {**run.labels, **more})

        return observe


def _active(stats: Stats) -> Iterable[tuple[float, Labels]]:
    yield stats.active, {}


def _waiting(stats: Stats) -> Iterable[tuple[float, Labels]]:
    return ((queue.waiting, {URL: url}) for url, queue in stats.queues.items())


def _limit(stats: Stats) -> Iterable[tuple[float, Labels]]:
    return ((queue.limit, {URL: url}) for url, queue in stats.queues.items())


def _dropped(stats: Stats) -> Iterable[tuple[float, Labels]]:
    if stats.dropped is not None:
        yield stats.dropped, {}


def _time_left(stats: Stats) -> Iterable[tuple[float, Labels]]:
    now = datetime.now(UTC)
    return (((expiry - now).total_seconds(), {FILE: file}) for file, expiry in stats.expiries.items())


@functools.cache
def instruments(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a provider, made once; None: of the one that the program sets up for itself, even if it does so later.

    A provider keeps the callbacks of the first instrument of a name, so a second set of the same would measure nothing.
    """
    return Instruments(provider)
