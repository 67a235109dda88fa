"""Statistics of rounds: medians, ratios of medians, spreads, and whether a goal was met.

This module starts nothing and reads no clock. Results are plain mappings, as in the JSON file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Reading = Mapping[str, float]
"""The result of one round of one side: metric to value."""

Rounds = Mapping[str, Sequence[float]]
"""The results of all rounds of one side: metric to values, in the order of the rounds."""


@dataclass(frozen=True)
class Goal:
    """A goal for a side of a row.

    metric: the figure. bound: a multiple of the peer's figure, or an absolute value if there is no peer. than: the peer. at_most: less
    is better. side: whose goal it is; None: the first side's.
    """

    metric: str
    bound: float
    than: str | None = None
    at_most: bool = False
    side: str | None = None

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        peer = f" x {self.than}" if self.than else ""
        side = f"{self.side}: " if self.side else ""
        return f"{side}{self.metric} {sign} {self.bound:g}{peer}"


CLIENT_BUSY = "client busy"
"""The metric for the client's share of one processor."""

CLIENT_LIMIT = 0.9
"""From this share on, the client may limit the rate, and not the server."""


@dataclass(frozen=True)
class Outcome:
    """The result of a goal.

    measured: the ratio, or the figure itself; None: one of the two sides did not run. limited: the client was at its limit with the
    peer, so the peer may be faster than measured, and the true ratio lower.
    """

    goal: Goal
    measured: float | None
    limited: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None: unknown."""
        if self.measured is None:
            return None
        met = self.measured <= self.goal.bound if self.goal.at_most else self.measured >= self.goal.bound
        return None if met and self.limited else met


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the ratio of the medians; infinite if only the second is zero."""
    above, below = median(ours), median(theirs)
    if below:
        return above / below
    return math.inf if above else 1.0


def spread(values: Sequence[float]) -> float:
    """Return the noise: the highest round minus the lowest, as a share of the median."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def collect(readings: Sequence[Reading]) -> dict[str, list[float]]:
    """Return the rounds of one side, by metric."""
    return {metric: [reading[metric] for reading in readings] for metric in (readings[0] if readings else ())}


def outcomes(row: Mapping[str, Any]) -> list[Outcome]:
    """Return the result of each goal of a measured row."""
    sides: Mapping[str, Rounds] = row["sides"]
    return [_outcome(Goal(**goal), sides, row["subject"]) for goal in row["goals"]]


def limits(side: Rounds) -> bool:
    """Return whether the client was at its limit with this side."""
    return median(side.get(CLIENT_BUSY, (0.0,))) >= CLIENT_LIMIT


def _outcome(goal: Goal, sides: Mapping[str, Rounds], subject: str) -> Outcome:
    ours = sides.get(goal.side or subject, {}).get(goal.metric)
    if not ours:
        return Outcome(goal, None)
    if goal.than is None:
        return Outcome(goal, median(ours))
    peer = sides.get(goal.than, {})
    theirs = peer.get(goal.metric)
    limited = not goal.at_most and limits(peer)
    return Outcome(goal, ratio(ours, theirs) if theirs else None, limited)
