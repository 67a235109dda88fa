"""What is measured of a server: an observer that counts, and a collector for prometheus_client."""

from __future__ import annotations

import time
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from socketkit.seams import Address, DrainReport, Queue, Refusal, Request
from socketkit_prometheus import _layout as at
from socketkit_prometheus._board import Board, Slot

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    from socketkit import Server

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The usual bounds of the histograms, in seconds."""


@attrs.define
class Served:
    """What is known of a server since it started.

    dispatcher: its name, and that of its inner one after a slash. started: in seconds since 1970. max_handlers: most handlers at once;
    None: unknown. reads_ahead: whether its requests are accepted by a process, and run by children of it that have no listeners.
    """

    dispatcher: str
    lifecycle: str
    started: float
    max_handlers: int | None
    reads_ahead: bool
    queues: Mapping[str, Queue] = attrs.field(factory=dict)
    """The queues of its listeners when it accepted the last request, if it reads ahead."""

    @classmethod
    def of(cls, server: Server) -> Served:
        """Return what is known of a server that starts now."""
        recipe = server.dispatcher
        inner = getattr(recipe, "inner", None)
        return cls(
            dispatcher="/".join(type(each).__name__ for each in (recipe, inner) if each is not None),
            lifecycle=type(server.lifecycle).__name__,
            started=time.time(),
            max_handlers=server.max_handlers,
            reads_ahead=any(getattr(each, "forks_requests", False) for each in (recipe, inner)),
        )


class Metrics:
    """An observer that counts what a server does, in all of its processes, and a collector that says so in Prometheus' terms.

    Each server should have its own, because one that observes several adds them up. For a registry of the program's own, use
    ``registry.register(metrics)``.

    buckets: the upper bounds of the histograms, in seconds, ascending.
    """

    def __init__(self, buckets: tuple[float, ...] = BUCKETS) -> None:
        self._bounds = buckets
        self._waits = at.WAITS
        self._durations = at.WAITS + len(buckets) + 1
        self._board = Board(self._durations + len(buckets) + 1, at.settle)
        self._servers: weakref.WeakKeyDictionary[Server, Served] = weakref.WeakKeyDictionary()
        self._running: set[Server] = set()
        self._reads_ahead = False
        self._workers: set[object] = set()

    @property
    def observes(self) -> bool:
        """Whether a server that it observes has started, or has taken a request."""
        return bool(self._servers)

    # --- what it hears: see `socketkit.seams.EVENTS`. Its methods for requests are on the path of each, so they call nothing twice -----

    def server_started(self, server: Server) -> None:
        """Share memory with the processes that the server is about to fork."""
        self._board.open()
        self._running.add(server)
        self._note(server)

    def server_stopped(self, server: Server, report: DrainReport | None) -> None:  # noqa: ARG002 - the arguments of the event
        """Hold no descriptor while no server runs."""
        self._running.discard(server)
        if not self._running:
            self._board.close()

    def request_accepted(self, server: Server, request: Request, client_address: Address) -> None:  # noqa: ARG002 - the arguments of the event
        """Count it."""
        slot = self._board.slot or self._begin(server)
        with slot.lock:
            slot.words[at.ACCEPTED] += 1
        if self._reads_ahead and (served := self._servers.get(server)) is not None:
            served.queues = server.stats().queues

    def handler_entered(self, server: Server, request: Request, client_address: Address, seconds: float | None) -> None:  # noqa: ARG002
        """Count a handler that runs, and how long its client has waited for it."""
        slot = self._board.slot or self._board.claim()
        words = slot.words
        with slot.lock:
            words[at.ENTERED] += 1
            if seconds is not None:
                words[self._waits + bisect_left(self._bounds, seconds)] += 1
                words[at.WAITED] += int(seconds * at.NANOSECONDS)

    def handler_left(self, server: Server, client_address: Address, outcome: str | None, seconds: float) -> None:  # noqa: ARG002
        """Count a handler that runs no longer, and how long it has run."""
        slot = self._board.slot or self._board.claim()
        words = slot.words
        with slot.lock:
            words[at.LEFT] += 1
            words[self._durations + bisect_left(self._bounds, seconds)] += 1
            words[at.TOOK] += int(seconds * at.NANOSECONDS)

    def request_refused(self, server: Server, client_address: Address, reason: Refusal) -> None:  # noqa: ARG002
        """Count it by its kind."""
        self._add(at.place_of_refusal(reason))

    def request_ended(self, server: Server, client_address: Address, outcome: str, seconds: float) -> None:  # noqa: ARG002
        """Count it by its outcome."""
        slot = self._board.slot or self._board.claim()
        with slot.lock:
            slot.words[at.place_of_outcome(outcome)] += 1
        if not self._running:  # it was taken by `handle_request`, or its server has stopped without a drain
            self._board.close()

    def accept_paused(self, server: Server, url: str, error: OSError, seconds: float) -> None:  # noqa: ARG002
        """Count it."""
        self._add(at.PAUSES)

    def worker_started(self, server: Server, worker: object) -> None:  # noqa: ARG002
        """Note a process that serves."""
        self._workers.add(worker)
        self._note_workers()

    def worker_died(self, server: Server, worker: object, reason: str) -> None:  # noqa: ARG002
        """Count it."""
        self._workers.discard(worker)
        self._note_workers()
        self._add(at.WORKERS_DIED)

    def worker_left(self, server: Server, worker: object) -> None:  # noqa: ARG002
        """Note that it does not serve any longer."""
        self._workers.discard(worker)
        self._note_workers()

    # --- what it says ----------------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as prometheus_client's registries want them. From any thread of any process of the server."""
        from socketkit_prometheus._families import families  # noqa: PLC0415 - importing prometheus_client takes long

        return families(at.Counts.read(self._board.sums(), self._bounds), dict(self._servers.items()))

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _begin(self, server: Server) -> Slot:
        """Claim the slot of this process. It is the first event of a server whose requests are taken by `handle_request` alone."""
        if server not in self._servers:
            self._note(server)
        return self._board.claim()

    def _note(self, server: Server) -> None:
        served = self._servers[server] = Served.of(server)
        self._reads_ahead = self._reads_ahead or served.reads_ahead

    def _add(self, place: int) -> None:
        slot = self._board.slot or self._board.claim()
        with slot.lock:
            slot.words[place] += 1

    def _note_workers(self) -> None:
        slot = self._board.slot or self._board.claim()
        with slot.lock:
            slot.words[at.WORKERS] = len(self._workers)


if TYPE_CHECKING:
    _collector: Collector = Metrics()
