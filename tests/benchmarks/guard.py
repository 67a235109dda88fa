"""The guard: measures briefly what the goals compare with peers, and tells what has fallen since the figures were recorded.

A ratio to a peer that ran in the same minute is all that it looks at, so it needs neither a quiet machine nor the one of the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .figures import Goal, Outcome, outcomes
from .rows import ROWS, Row
from .running import measure

RECORDED = Path(__file__).with_name("recorded.json")
"""The figures of the last whole run, from which the page was written."""

SECONDS = 1.0
"""How long each load lasts."""

AGAIN = 3
"""Rounds of a second measurement, for a row that seems to have fallen: one brief round says little on a busy machine."""

LEAST = 2 / 3
"""The share of the recorded ratio that must remain."""


@dataclass(frozen=True)
class Change:
    """A ratio, then and now. None: not measured."""

    row: str
    goal: Goal
    then: float | None
    now: float | None

    @property
    def fell(self) -> bool:
        """Whether the ratio has become worse by more than a third."""
        if self.then is None or self.now is None:
            return False
        better, worse = (self.then, self.now) if self.goal.at_most else (self.now, self.then)
        return better < worse * LEAST

    def __str__(self) -> str:
        then, now = (f"{ratio:.2f}" if ratio is not None else "not measured" for ratio in (self.then, self.now))
        return f"{self.row}: {self.goal.metric} {now} x {self.goal.than}, recorded: {then}{'  FELL' if self.fell else ''}"


def guard(say: Callable[[str], object], recorded: Path = RECORDED) -> list[Change]:
    """Measure, and return what fell in two measurements. say: receives each change as a line."""
    before = {row["name"]: row for row in json.loads(recorded.read_text())["rows"]}
    fallen: list[Change] = []
    for row in watched():
        found = changes(before.get(row.name), measure(row, 1, SECONDS, _nobody))
        if any(change.fell for change in found):
            found = changes(before.get(row.name), measure(row, AGAIN, SECONDS, _nobody))
        for change in found:
            say(str(change))
        fallen += [change for change in found if change.fell]
    return fallen


def watched() -> list[Row]:
    """Return the rows that a goal compares with a peer, each with no other sides than those compared."""
    found = []
    for row in ROWS:
        compared = {goal.side or row.subject for goal in row.goals} | {goal.than for goal in row.goals}
        if any(goal.than for goal in row.goals):
            found.append(replace(row, sides={side: command for side, command in row.sides.items() if side in compared}))
    return found


def changes(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Change]:
    """Return each ratio of a measured row, next to the recorded one."""
    before = {str(outcome.goal): outcome for outcome in (outcomes(then) if then else ())}
    return [_change(now["name"], before.get(str(outcome.goal)), outcome) for outcome in outcomes(now) if outcome.goal.than]


def _change(row: str, then: Outcome | None, now: Outcome) -> Change:
    return Change(row, now.goal, then.measured if then else None, now.measured)


def _nobody(_line: str) -> None:
    """Read no lines: those of single sides would hide the few that matter."""
