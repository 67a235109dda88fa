"""Where each number is among the numbers of a process, and what they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import attrs

from socketkit.seams import REFUSALS, Refusal

OUTCOMES = ("finished", "failed", "aborted", "refused", "died", "timed out")
"""How a request can end, see `socketkit.Stats`; any other outcome counts as failed."""

KINDS = tuple(REFUSALS)
"""The kinds of refusals; any other kind counts as "other"."""

NANOSECONDS = 1_000_000_000

# Readers take no lock, and read in this order. So that nothing ever ends that has not begun, ends are before beginnings.
ENDED = 0
ACCEPTED = ENDED + len(OUTCOMES)
LEFT = ACCEPTED + 1
ENTERED = LEFT + 1
REFUSED = ENTERED + 1
PAUSES = REFUSED + len(KINDS)
WORKERS = PAUSES + 1
WORKERS_DIED = WORKERS + 1
WAITED = WORKERS_DIED + 1  # nanoseconds
TOOK = WAITED + 1  # nanoseconds
WAITS = TOOK + 1  # the first of the buckets

_DIED = ENDED + OUTCOMES.index("died")
_FAILED = ENDED + OUTCOMES.index("failed")
_OUTCOME_PLACES = {outcome: ENDED + place for place, outcome in enumerate(OUTCOMES)}
_KIND_PLACES = {kind: REFUSED + place for place, kind in enumerate(KINDS)}


_OTHER = _KIND_PLACES["other"]


def place_of_outcome(outcome: str) -> int:
    return _OUTCOME_PLACES.get(outcome, _FAILED)


def place_of_refusal(refusal: Refusal) -> int:
    return _KIND_PLACES.get(refusal.kind, _OTHER)


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
            refusals=dict(zip(KINDS, sums[REFUSED:PAUSES], strict=True)),
            running=max(0, sums[ENTERED] - sums[LEFT]),
            waits=Histogram(bounds, tuple(accumulate(sums[WAITS:durations])), sums[WAITED] / NANOSECONDS),
            durations=Histogram(bounds, tuple(accumulate(sums[durations:])), sums[TOOK] / NANOSECONDS),
            pauses=sums[PAUSES],
            workers=sums[WORKERS],
            workers_died=sums[WORKERS_DIED],
        )
