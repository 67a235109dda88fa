"""Where each number is among the numbers of a process, and what they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import attrs

OUTCOMES = ("finished", "failed", "aborted", "refused", "died", "timed out")
"""How a request can end, see `socketkit.Stats`; any other outcome counts as failed."""

REASONS: Mapping[str, str] = {
    "max_connections is": "max_connections",
    "max_per_peer is": "max_per_peer",
    "the client's network is": "network",
    "the client's user is": "user",
    "closed while idle": "idle",
    "every thread is busy": "busy",
    "verify_request": "verify_request",
    "the server stopped": "stop",
    "truncated": "truncated",
}
"""The label of a refusal, by what its reason begins with."""

OTHER = "other"
"""The label of all other refusals, such as for lack of a thread or process."""

LABELS = (*REASONS.values(), OTHER)

NANOSECONDS = 1_000_000_000

# Readers take no lock, and read in this order. So that nothing ever ends that has not begun, ends are before beginnings.
ENDED = 0
ACCEPTED = ENDED + len(OUTCOMES)
LEFT = ACCEPTED + 1
ENTERED = LEFT + 1
REFUSED = ENTERED + 1
PAUSES = REFUSED + len(LABELS)
WORKERS = PAUSES + 1
WORKERS_DIED = WORKERS + 1
WAITED = WORKERS_DIED + 1  # nanoseconds
TOOK = WAITED + 1  # nanoseconds
WAITS = TOOK + 1  # the first of the buckets

_DIED = ENDED + OUTCOMES.index("died")
_FAILED = ENDED + OUTCOMES.index("failed")
_OUTCOME_PLACES = {outcome: ENDED + place for place, outcome in enumerate(OUTCOMES)}
_LABEL_PLACES = {label: REFUSED + place for place, label in enumerate(LABELS)}


def place_of_outcome(outcome: str) -> int:
    return _OUTCOME_PLACES.get(outcome, _FAILED)


def place_of_reason(reason: str) -> int:
    return _LABEL_PLACES[next((label for beginning, label in REASONS.items() if reason.startswith(beginning)), OTHER)]


def settle(words: memoryview) -> None:
    """Record that a process has ended: the requests that it had accepted and not closed have died, and none of its handlers runs."""
    words[_DIED] += max(0, words[ACCEPTED] - sum(words[ENDED:ACCEPTED]))
    words[LEFT] = words[ENTERED]
    words[WORKERS] = 0


@attrs.frozen
class Histogram:
    """Durations: how many are at most as long as each bound, and how long all are together.

    bounds: in seconds, ascending. counts: cumulative, one for each bound and one for all. total: seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@attrs.frozen
class Counts:
    """The sums over all processes."""

    accepted: int
    active: int
    outcomes: Mapping[str, int]
    refusals: Mapping[str, int]
    running: int
    waits: Histogram
    durations: Histogram
    pauses: int
    workers: int
    workers_died: int

    @classmethod
    def read(cls, sums: Sequence[int], bounds: tuple[float, ...]) -> Counts:
        """Return what the sums of all numbers of a board mean."""
        durations = WAITS + len(bounds) + 1
        return cls(
            accepted=sums[ACCEPTED],
            active=max(0, sums[ACCEPTED] - sum(sums[ENDED:ACCEPTED])),
            outcomes=dict(zip(OUTCOMES, sums[ENDED:ACCEPTED], strict=True)),
            refusals=dict(zip(LABELS, sums[REFUSED:PAUSES], strict=True)),
            running=max(0, sums[ENTERED] - sums[LEFT]),
            waits=Histogram(bounds, tuple(accumulate(sums[WAITS:durations])), sums[WAITED] / NANOSECONDS),
            durations=Histogram(bounds, tuple(accumulate(sums[durations:])), sums[TOOK] / NANOSECONDS),
            pauses=sums[PAUSES],
            workers=sums[WORKERS],
            workers_died=sums[WORKERS_DIED],
        )
